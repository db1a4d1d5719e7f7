"""Apache Kafka nodes (KRaft, controller and broker in one JVM) from the jars that scripts/setup fetched: one alone, or several as a cluster.

Fast to start because of a class-data archive (AppCDS) and quick to be listed again after a kill -9 because of a short
broker session: with Kafka's own 9 s a killed node stays fenced for 12 s.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import certificates
import kafka_protocol as protocol
import process
from process import Failed, Home

TOOLS = (Path(__file__).resolve().parents[2] / ".tools" / "kafka").resolve()
ARCHIVE = TOOLS / "kafka.jsa"
CLUSTER_ID = "b3V0Ym94ZC10ZXN0cy0xMg"
READY_SECONDS = 60
STOP_SECONDS = 10
PASSWORD = "secret"
USERS = ("admin", "alice", "bob")  # admin is a super user when there are ACLs

LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = ${env:OUTBOXD_KAFKA_LOG:-WARN}
rootLogger.appenderRef.out.ref = out
"""


def class_path():
    """Explicit and sorted: an AppCDS archive is only used with the very class path that it was made with."""
    jars = sorted(str(jar) for jar in (TOOLS / "libs").glob("*.jar"))
    if not jars:
        raise Failed("no Kafka jars: run scripts/setup first")
    return ":".join(jars)


def java(options, main, *arguments):
    return [os.environ.get("OUTBOXD_JAVA", "java"), *options, "-cp", class_path(), main, *arguments]


def jvm_options(home, state):
    options = [f"-Xms{state['heap']}", f"-Xmx{state['heap']}", "-XX:+UseSerialGC", "-Djava.awt.headless=true",
               f"-Dlog4j2.configurationFile={home.path}/log4j2.properties", f"-Dkafka.logs.dir={home.path}"]
    if not state["c2"]:
        options.append("-XX:TieredStopAtLevel=1")
    if state.get("archive_to"):
        options.append(f"-XX:ArchiveClassesAtExit={state['archive_to']}")
    elif ARCHIVE.exists():
        options += [f"-XX:SharedArchiveFile={ARCHIVE}", "-Xshare:auto", "-Xlog:cds=off"]
    return options


def listeners(state):
    """(name, security protocol, bound port, advertised port) of each listener."""
    yield "PLAINTEXT", "PLAINTEXT", state["port"], state["port"]
    if state["secure"]:
        yield "SASL_PLAINTEXT", "SASL_PLAINTEXT", state["sasl_port"], state["sasl_port"]
        yield "SASL_SSL", "SASL_SSL", state["sasl_tls_port"], state["sasl_tls_port"]
        yield "SSL", "SSL", state["mtls_port"], state["mtls_port"]
    if state["proxy_port"]:
        yield "PROXY", "PLAINTEXT", state["behind_proxy_port"], state["proxy_port"]


def properties(home, state):
    ends = list(listeners(state))
    controller = state["controller_port"]
    values = {
        "process.roles": "broker,controller",
        "node.id": str(state["node"]),
        "controller.quorum.voters": ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(state["controllers"], 1)),
        "listeners": ",".join([f"{n}://127.0.0.1:{bound}" for n, _, bound, _ in ends] + [f"CONTROLLER://127.0.0.1:{controller}"]),
        "advertised.listeners": ",".join(f"{n}://127.0.0.1:{advertised}" for n, _, _, advertised in ends),
        "listener.security.protocol.map": ",".join([f"{n}:{p}" for n, p, _, _ in ends] + ["CONTROLLER:PLAINTEXT"]),
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": f"{home.path}/data",
        "num.partitions": "1",
        "default.replication.factor": str(len(state["controllers"])),
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "log.cleaner.dedupe.buffer.size": "2097152",
        "broker.session.timeout.ms": "2000",
        "broker.heartbeat.interval.ms": "200",
        "controlled.shutdown.enable": "true",
    }
    if state["secure"]:
        values |= security(home)
    if state["acl"]:
        values |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:admin",
            "allow.everyone.if.no.acl.found": "true",
        }
    return values | state["properties"]


def security(home):
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required " + " ".join(
        f'user_{user}="{PASSWORD}"' for user in USERS
    )
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    values = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": f"{home.path}/tls/server-all.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": f"{home.path}/tls/ca.pem",
        "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]*).*$/$1/,DEFAULT",
        "listener.name.ssl.ssl.client.auth": "required",
    }
    for listener in ("sasl_plaintext", "sasl_ssl"):
        values |= {
            f"listener.name.{listener}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            f"listener.name.{listener}.plain.sasl.jaas.config": f"{plain};",
            f"listener.name.{listener}.scram-sha-256.sasl.jaas.config": f"{scram};",
            f"listener.name.{listener}.scram-sha-512.sasl.jaas.config": f"{scram};",
        }
    return values


def start(script, directory, options):
    home = Home(directory, "kafka")
    with home.locked(create=True):
        state = home.load() or first_state(options)
        before = state["properties"]
        state["properties"] = before | options.prop
        if options.heap:
            state["heap"] = options.heap
        state["c2"] = state["c2"] or options.c2
        began = time.monotonic()
        if not process.alive(state.get("process")):
            try:
                boot(home, state)
            except Failed:
                home.save(state | {"properties": before})  # What it cannot start with is not kept.
                raise
        if options.watch:
            state["guard"] = process.watch(script, home, options.watch, options.remove, state.get("guard"))
        home.save(state)
        return describe(home, state) | {"ready_seconds": round(time.monotonic() - began, 2)}


def first_state(options):
    secure = options.sasl_tls or options.acl
    ports = process.free_ports(6)
    controllers = options.controllers or [ports[1]]
    return {
        "port": options.port or ports[0],
        "node": options.node,
        "controllers": controllers,
        "controller_port": controllers[options.node - 1],
        "secure": secure,
        "sasl_port": ports[2],
        "sasl_tls_port": ports[3],
        "mtls_port": ports[4],
        "behind_proxy_port": ports[5],
        "proxy_port": options.behind_proxy,
        "acl": options.acl,
        "properties": {},
        "heap": "256m",
        "c2": False,
        "archive_to": getattr(options, "archive_to", None),
    }


def boot(home, state):
    if state["secure"]:
        certificates.make(home.path / "tls")
    lines = [f"{key}={value}\n" for key, value in properties(home, state).items()]
    (home.path / "server.properties").write_text("".join(lines))
    (home.path / "log4j2.properties").write_text(LOG4J)
    if not (home.path / "data" / "meta.properties").exists():
        format_storage(home, state)
    log = home.path / "kafka.log"
    state["process"] = process.spawn(java(jvm_options(home, state), "kafka.Kafka", f"{home.path}/server.properties"), log, cwd=home.path)
    home.save(state)
    try:
        process.wait_until(lambda: is_ready(state["port"], state["node"]), state["process"], READY_SECONDS, "kafka", log)
    except Failed:
        process.kill(state["process"])
        raise


def format_storage(home, state):
    shutil.rmtree(home.path / "data", ignore_errors=True)
    arguments = ["format", "-t", CLUSTER_ID, "-c", f"{home.path}/server.properties"]
    for user in USERS if state["secure"] else ():
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            arguments += ["--add-scram", f"{mechanism}=[name={user},password={PASSWORD}]"]
    options = jvm_options(home, state | {"archive_to": None, "c2": False})
    done = subprocess.run(java(options, "kafka.tools.StorageTool", *arguments), capture_output=True, text=True, cwd=home.path)
    if done.returncode:
        raise Failed(f"kafka format: {done.stdout}{done.stderr}")


def is_ready(port, node):
    """The broker is listed (not fenced), and every partition that it knows has a leader."""
    try:
        brokers, topics = protocol.metadata(port)
    except OSError:
        return False
    return any(broker[0] == node for broker in brokers) and all(leader >= 0 for leaders in topics.values() for leader in leaders)


def describe(home, state):
    running = process.alive(state.get("process"))
    answer = {
        "kind": "kafka",
        "running": running,
        "pid": state["process"]["pid"] if running else None,
        "node": state["node"],
        "port": state["port"],
        "bootstrap": f"127.0.0.1:{state['port']}",
        "dir": str(home.path),
        "log": str(home.path / "kafka.log"),
    }
    if state["secure"]:
        answer |= {
            "sasl_bootstrap": f"127.0.0.1:{state['sasl_port']}",
            "sasl_tls_bootstrap": f"127.0.0.1:{state['sasl_tls_port']}",
            "mtls_bootstrap": f"127.0.0.1:{state['mtls_port']}",
            "users": {user: PASSWORD for user in USERS},
            "tls": certificates.paths(home.path / "tls"),
        }
    if state["proxy_port"]:
        answer |= {"proxy_port": state["proxy_port"], "behind_proxy_port": state["behind_proxy_port"]}
    return answer


def stop(directory, seconds=STOP_SECONDS):
    with Home(directory, "kafka").locked() as home:
        return {"stopped": process.end(home.need().get("process"), seconds)}


def kill(directory):
    with Home(directory, "kafka").locked() as home:
        return {"stopped": process.kill(home.need().get("process"))}


def status(directory):
    home = Home(directory, "kafka")
    return describe(home, home.need())


def running_port(directory):
    state = Home(directory, "kafka").need()
    if not process.alive(state.get("process")):
        raise Failed(f"the broker in {directory} is not running")
    return state["port"]


def create_topic(directory, name, partitions, configs, replicas=1):
    port = running_port(directory)
    protocol.create_topic(port, name, partitions, configs, replicas)
    wait_for_topic(port, name, lambda leaders: leaders and len(leaders) == partitions and min(leaders) >= 0)
    return {"topic": name, "partitions": partitions}


def delete_topic(directory, name):
    port = running_port(directory)
    protocol.delete_topic(port, name)
    wait_for_topic(port, name, lambda leaders: leaders is None)
    return {"deleted": name}


def set_password(directory, user, password):
    """By Java's tool: the request for it has flexible encodings only."""
    home = Home(directory, "kafka")
    state = home.need() | {"archive_to": None, "c2": False}
    arguments = ["--bootstrap-server", f"127.0.0.1:{running_port(directory)}", "--alter", "--entity-type", "users",
                 "--entity-name", user, "--add-config", f"SCRAM-SHA-512=[password={password}]"]
    done = subprocess.run(java(jvm_options(home, state), "kafka.admin.ConfigCommand", *arguments), capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"password of {user}: {done.stdout}{done.stderr}")
    return {"user": user}


def wait_for_topic(port, name, done):
    deadline = time.monotonic() + 30
    while not done(protocol.metadata(port)[1].get(name)):
        if time.monotonic() > deadline:
            raise Failed(f"topic {name}: not settled within 30 s")
        time.sleep(0.01)


def build_archive(script):
    """Runs a broker once, makes it do what tests do, and keeps the classes that it loaded for later starts."""
    home = TOOLS / "archive-run"
    shutil.rmtree(home, ignore_errors=True)
    fresh = TOOLS / "kafka.jsa.new"
    fresh.unlink(missing_ok=True)

    class Options:
        sasl_tls, acl, port, behind_proxy, prop, heap, c2 = True, True, None, None, {}, None, False
        watch, remove, archive_to, node, controllers = os.getpid(), True, str(fresh), 1, None

    ARCHIVE.unlink(missing_ok=True)
    try:
        start(script, home, Options)
        create_topic(home, "archive", 3, {})
        protocol.alter_topic(running_port(home), "archive", {"max.message.bytes": "900000"})
        exercise(running_port(home))
    finally:
        stop(home, 60)
    if not fresh.exists():
        raise Failed(f"no class archive was written:\n{process.tail(home / 'kafka.log')}")
    fresh.rename(ARCHIVE)
    shutil.rmtree(home, ignore_errors=True)
    return {"archive": str(ARCHIVE), "bytes": ARCHIVE.stat().st_size}


def exercise(port):
    """Produces and consumes a little, with whatever client there is: only to have those classes loaded."""
    if not shutil.which("kcat"):
        print("no kcat: the class archive will lack the produce path", file=sys.stderr)
        return
    broker = ["-b", f"127.0.0.1:{port}", "-t", "archive"]
    for codec in ("none", "lz4", "zstd", "gzip"):
        subprocess.run(["kcat", "-P", *broker, "-X", "enable.idempotence=true", "-z", codec], input=b"a\nb\nc\n", check=False,
                       capture_output=True, timeout=30)
    subprocess.run(["kcat", "-C", "-e", "-q", *broker], check=False, capture_output=True, timeout=30)
    subprocess.run(["kcat", "-b", f"127.0.0.1:{port}", "-G", "archive-group", "-e", "-q", "archive"], check=False, capture_output=True, timeout=30)
