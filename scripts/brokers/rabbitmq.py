"""One RabbitMQ node from Debian's package, beside any other: own port, own epmd, own data, own cookie.

The package's wrappers want the user `rabbitmq` and the system's data; the scripts behind them run as anybody, with
everything said in the environment. epmd is started in the foreground here, else the node leaves a daemon behind.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import certificates
import process
from process import Failed, Home

READY_SECONDS = 120
STOP_SECONDS = 20

# What a kill -9 soon after a declare would make this version forget: the queue names stand in dets, the bindings in
# Mnesia's log buffer, and both are saved late.
SYNC = "mnesia:sync_log(), mnesia:dump_log(), [dets:sync(T) || T <- dets:all()]."


def sbin():
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"))
    if not found:
        raise Failed("no RabbitMQ: run scripts/setup first")
    return found[-1]


def environment(home, state):
    path = home.path
    return {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "LANG": "C.UTF-8",
        "HOME": f"{path}/home",
        "ERL_EPMD_PORT": str(state["epmd_port"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"n{state['port']}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(state["port"]),
        "RABBITMQ_DIST_PORT": str(state["dist_port"]),
        "RABBITMQ_CONF_ENV_FILE": f"{path}/env.conf",
        "RABBITMQ_CONFIG_FILE": f"{path}/rabbitmq.conf",
        "RABBITMQ_ADVANCED_CONFIG_FILE": f"{path}/advanced.config",
        "RABBITMQ_MNESIA_BASE": f"{path}/mnesia",
        "RABBITMQ_LOG_BASE": f"{path}/log",
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{path}/enabled_plugins",
        "RABBITMQ_PID_FILE": f"{path}/rabbitmq.pid",
        "RABBITMQ_GENERATED_CONFIG_DIR": f"{path}/generated",
        "RABBITMQ_SCHEMA_DIR": f"{path}/schema",
        "RABBITMQ_FEATURE_FLAGS_FILE": f"{path}/feature_flags",
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none -kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
        "RABBITMQ_CTL_ERL_ARGS": "-start_epmd false",
        "RABBITMQ_CTL_DIST_PORT_MIN": str(state["ctl_port"]),
        "RABBITMQ_CTL_DIST_PORT_MAX": str(state["ctl_port"] + 20),
    }


def configuration(home, state):
    lines = [
        f"listeners.tcp.local = 127.0.0.1:{state['port']}",
        "disk_free_limit.absolute = 50MB",
        "vm_memory_high_watermark.absolute = 1GiB",
        "log.console.level = warning",
        "heartbeat = 10",
    ]
    if state["tls"]:
        tls = home.path / "tls"
        lines += [
            f"listeners.ssl.local = 127.0.0.1:{state['tls_port']}",
            f"ssl_options.cacertfile = {tls}/ca.pem",
            f"ssl_options.certfile = {tls}/server.pem",
            f"ssl_options.keyfile = {tls}/server.key",
            "ssl_options.verify = verify_peer",
            f"ssl_options.fail_if_no_peer_cert = {'true' if state['tls_client'] else 'false'}",
        ]
    if state.get("management_port"):
        lines += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {state['management_port']}"]
    return "\n".join(lines + state["conf"]) + "\n"


def start(script, directory, options):
    home = Home(directory, "rabbitmq")
    with home.locked(create=True):
        state = home.load() or first_state(options)
        state["conf"] += [line for line in options.conf if line not in state["conf"]]
        began = time.monotonic()
        if not process.alive(state.get("process")):
            boot(home, state)
        if options.watch:
            state["guard"] = process.watch(script, home, options.watch, options.remove, state.get("guard"))
        home.save(state)
        return describe(home, state) | {"ready_seconds": round(time.monotonic() - began, 2)}


def first_state(options):
    port, tls_port, epmd_port, dist_port, ctl_port, management_port = process.free_ports(6)
    return {
        "port": options.port or port,
        "tls": options.tls or options.tls_client,
        "tls_client": options.tls_client,
        "tls_port": tls_port,
        "epmd_port": epmd_port,
        "dist_port": dist_port,
        "ctl_port": ctl_port,
        "management_port": management_port if options.management else None,
        "conf": [],
    }


def boot(home, state):
    path = home.path
    for name in ("home", "mnesia", "log", "generated", "schema"):
        (path / name).mkdir(exist_ok=True)
    cookie = path / "home" / ".erlang.cookie"
    if not cookie.exists():
        cookie.write_text(os.urandom(12).hex().upper())
        cookie.chmod(0o400)
    if state["tls"]:
        certificates.make(path / "tls")
    (path / "rabbitmq.conf").write_text(configuration(home, state))
    (path / "enabled_plugins").write_text("[rabbitmq_management].\n" if state.get("management_port") else "[].\n")
    (path / "env.conf").touch()
    (path / "advanced.config").write_text("[].\n")
    (path / "rabbitmq.pid").unlink(missing_ok=True)
    process.kill(state.get("epmd"))
    env = environment(home, state)
    epmd = [shutil.which("epmd") or "epmd", "-address", "127.0.0.1", "-port", str(state["epmd_port"])]
    state["epmd"] = process.spawn(epmd, path / "epmd.log", env=env)
    home.save(state)
    process.wait_until(lambda: connects(state["epmd_port"]), state["epmd"], 10, "epmd", path / "epmd.log")
    log = path / "rabbitmq.log"
    state["process"] = process.spawn([str(sbin() / "rabbitmq-server")], log, env=env, cwd=path)
    home.save(state)
    try:
        process.wait_until(lambda: speaks_amqp(state["port"]), state["process"], READY_SECONDS, "rabbitmq", log)
        if state.get("management_port"):
            process.wait_until(lambda: manages(state["management_port"]), state["process"], READY_SECONDS, "rabbitmq's management API", log)
    except Failed:
        process.kill(state["process"])
        process.kill(state["epmd"])
        raise
    with contextlib.suppress(FileNotFoundError, ValueError):
        real = int((path / "rabbitmq.pid").read_text())
        if real != state["process"]["pid"]:
            state["process"] = process.identity(real)


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def manages(port):
    """The management API answers, if only that one has to say who one is."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/overview", timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code == 401
    except OSError:
        return False
    return True


def speaks_amqp(port):
    """An AMQP greeting is answered with a method frame: the node takes clients."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def describe(home, state):
    running = process.alive(state.get("process"))
    answer = {
        "kind": "rabbitmq",
        "running": running,
        "pid": state["process"]["pid"] if running else None,
        "port": state["port"],
        "uri": f"amqp://guest:guest@127.0.0.1:{state['port']}/%2f",
        "dir": str(home.path),
        "log": str(home.path / "rabbitmq.log"),
    }
    if state.get("management_port"):
        answer |= {"management": f"http://127.0.0.1:{state['management_port']}"}
    if state["tls"]:
        answer |= {
            "tls_port": state["tls_port"],
            "tls_uri": f"amqps://guest:guest@127.0.0.1:{state['tls_port']}/%2f",
            "tls_client_required": state["tls_client"],
            "tls": certificates.paths(home.path / "tls"),
        }
    return answer


def stop(directory, seconds=STOP_SECONDS):
    with Home(directory, "rabbitmq").locked() as home:
        state = home.need()
        how = process.end(state.get("process"), seconds)
        process.kill(state.get("epmd"))
        return {"stopped": how}


def kill(directory):
    with Home(directory, "rabbitmq").locked() as home:
        state = home.need()
        how = process.kill(state.get("process"))
        process.kill(state.get("epmd"))
        return {"stopped": how}


def status(directory):
    home = Home(directory, "rabbitmq")
    return describe(home, home.need())


def ctl(directory, arguments):
    """Runs rabbitmqctl against this node; its output is ours. Returns its exit code."""
    home = Home(directory, "rabbitmq")
    command = [str(sbin() / "rabbitmqctl"), "-q", *arguments]
    return subprocess.run(command, env=environment(home, home.need()), stdin=subprocess.DEVNULL).returncode


def start_app(directory):
    """`start_app`, and then waits until the port answers."""
    code = ctl(directory, ["start_app"])
    state = Home(directory, "rabbitmq").need()
    if code == 0:
        process.wait_until(lambda: speaks_amqp(state["port"]), state["process"], 30, "rabbitmq", Path(directory) / "rabbitmq.log")
    return code
