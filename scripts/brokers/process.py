"""Processes that outlive the command that starts them: started apart, known again by start time, ended for certain.

A pid alone says nothing after a while: it is used again. A process is therefore remembered with its start time, and
nothing is signalled unless both still agree.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


class Failed(Exception):
    """What a person is told in one line."""


def started_at(pid):
    """Start time of a living process in clock ticks since boot; None when there is none (a zombie is none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identity(pid):
    return {"pid": pid, "started_at": started_at(pid)}


def alive(process):
    return bool(process) and process["started_at"] is not None and started_at(process["pid"]) == process["started_at"]


def send(process, number):
    """Signals the process if it is still the one that was remembered."""
    if alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], number)


def wait_gone(process, seconds):
    """True when the process is gone within the time."""
    try:
        handle = os.pidfd_open(process["pid"])
    except OSError:
        return not alive(process)
    try:
        deadline = time.monotonic() + seconds
        while alive(process):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([handle], [], [], min(left, 0.5))
        return True
    finally:
        os.close(handle)


def end(process, seconds):
    """SIGTERM, and SIGKILL when that was not enough within the time. Returns how it ended."""
    if not alive(process):
        return "was not running"
    send(process, signal.SIGCONT)
    send(process, signal.SIGTERM)
    if wait_gone(process, seconds):
        return "terminated"
    return kill(process)


def kill(process):
    if not alive(process):
        return "was not running"
    send(process, signal.SIGKILL)
    if not wait_gone(process, 10):
        raise Failed(f"pid {process['pid']} does not die")
    return "killed"


def spawn(command, log, env=None, cwd=None):
    """Starts a process in a session of its own, its output appended to a file."""
    with open(log, "ab") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=cwd,
            start_new_session=True, close_fds=True,
        )
    child.returncode = 0  # It is meant to outlive us: no "still running" warning.
    return identity(child.pid)


def free_ports(count):
    """Loopback ports outside the ephemeral range: there a client that keeps connecting to a broker that is down may
    be given that very port as its own, connect to itself, and keep the broker from coming back."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = []
    for port in random.SystemRandom().sample(range(10240, max(low, 12000)), 400):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
        if len(ports) == count:
            return ports
    raise Failed("no free loopback ports")


def wait_until(ready, process, seconds, what, log):
    """Polls `ready` until it is true; fails at once when the process ends."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not alive(process):
            raise Failed(f"{what} ended while starting:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise Failed(f"{what} not ready within {seconds} s:\n{tail(log)}")
        time.sleep(0.02)


def tail(log, lines=15):
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(Path(log).read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"


class Home:
    """The directory of one broker: `state.json` says what it is, `pid` is for people, `lock` makes commands take turns."""

    def __init__(self, directory, kind):
        self.path = Path(directory).absolute()
        self.kind = kind

    @contextlib.contextmanager
    def locked(self, create=False):
        if create:
            self.path.mkdir(parents=True, exist_ok=True)
        else:
            self.need()
        with open(self.path / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self

    def load(self):
        try:
            state = json.loads((self.path / "state.json").read_text())
        except FileNotFoundError:
            return {}
        if state["kind"] != self.kind:
            raise Failed(f"{self.path} is the home of a {state['kind']} broker")
        return state

    def need(self):
        state = self.load()
        if not state:
            raise Failed(f"no {self.kind} broker was ever started in {self.path}")
        return state

    def save(self, state):
        temporary = self.path / "state.json.new"
        temporary.write_text(json.dumps({"kind": self.kind, **state}, indent=1))
        temporary.rename(self.path / "state.json")
        (self.path / "pid").write_text(f"{(state.get('process') or {}).get('pid', '')}\n")


def watch(script, home, caller, remove, present):
    """A guard that ends the broker when the caller's process is gone, however it went; one for each caller."""
    process = identity(caller)
    if process["started_at"] is None:
        raise Failed(f"there is no process {caller} to watch")
    if present and present["for"] == process and alive(present):
        return present
    command = [sys.executable, str(script), "guard", str(home.path), str(caller), str(process["started_at"])]
    return spawn(command + (["--remove"] if remove else []), home.path / "guard.log") | {"for": process}


def guard(caller):
    """Blocks until the process is gone."""
    ctypes.CDLL(None).prctl(15, b"broker-guard", 0, 0, 0)  # PR_SET_NAME
    while not wait_gone(caller, 3600):
        pass
