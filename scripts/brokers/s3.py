"""A server that speaks S3: moto's, from .tools/s3 (scripts/setup). It keeps everything in memory, and forgets it when it ends.

It takes any key; nothing else of its answers differs from what the tests need: conditional puts, lists by delimiter, ranges.
"""

import socket
import time
from pathlib import Path

import process
from process import Failed, Home

READY_SECONDS = 60
SERVER = Path(__file__).resolve().parents[2] / ".tools" / "s3" / "bin" / "moto_server"


def start(script, directory, options):
    home = Home(directory, "s3")
    with home.locked(create=True):
        state = home.load() or {"port": options.port or process.free_ports(1)[0]}
        began = time.monotonic()
        if not process.alive(state.get("process")):
            boot(home, state)
        if options.watch:
            state["guard"] = process.watch(script, home, options.watch, options.remove, state.get("guard"))
        home.save(state)
        return describe(home, state) | {"ready_seconds": round(time.monotonic() - began, 2)}


def boot(home, state):
    if not SERVER.exists():
        raise Failed("no S3 server: run scripts/setup first")
    log = home.path / "s3.log"
    state["process"] = process.spawn([str(SERVER), "-H", "127.0.0.1", "-p", str(state["port"])], log, cwd=home.path)
    home.save(state)
    try:
        process.wait_until(lambda: answers(state["port"]), state["process"], READY_SECONDS, "the S3 server", log)
    except Failed:
        process.kill(state["process"])
        raise


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /moto-api/data.json HTTP/1.0\r\n\r\n")
            return connection.recv(8) == b"HTTP/1.1"
    except OSError:
        return False


def describe(home, state):
    running = process.alive(state.get("process"))
    return {
        "kind": "s3",
        "running": running,
        "pid": state["process"]["pid"] if running else None,
        "port": state["port"],
        "endpoint": f"http://127.0.0.1:{state['port']}",
        "dir": str(home.path),
        "log": str(home.path / "s3.log"),
    }


def stop(directory, seconds=10):
    with Home(directory, "s3").locked() as home:
        return {"stopped": process.end(home.need().get("process"), seconds)}


def kill(directory):
    with Home(directory, "s3").locked() as home:
        return {"stopped": process.kill(home.need().get("process"))}


def status(directory):
    home = Home(directory, "s3")
    return describe(home, home.need())
