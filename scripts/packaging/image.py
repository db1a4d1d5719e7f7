"""The image as its Dockerfile says, built by buildah and run by podman beside an application's container, both on one volume.

Usually no registry is asked: the Dockerfile's argument RUST names an image that is made here of Debian packages, in which `cargo build` hands over the
program that was built outside. All else is done as the Dockerfile says it. With `--build-in-image` RUST is a real image, and nothing is handed over.
"""

import json
import os
import shlex
import shutil
from pathlib import Path

from beside import Beside, Broker, configuration
from machine import remove_groups, rootfs
from steps import CannotRun, run, until

ROOT = Path(__file__).resolve().parents[2]
IMAGE, BASE = "localhost/outboxd", "localhost/outboxd-base"
MEGABYTES_MAX = 60
USER = 10001
CARGO = """#!/bin/bash
[[ "$*" == "build --locked --release" ]] || { echo "not what this stands for: cargo $*" >&2; exit 1; }
install -D /opt/outboxd target/release/outboxd
"""
DOCUMENTED = """[sources.shop]
path = "/data/shop.db"
preset = "outboxd"
read = "outbox"

[sinks.lines]
type = "file"
path = "/data/lines.ndjson"

[relays.shop_to_lines]
source = "shop"
sink = "lines"
start = "first"
"""
APPLICATIONS_USER = 1000
ORDER = ["build", "what_the_image_says", "the_documented_command", "run_beside", "health", "kills", "drain", "outage", "restarted_together", "untouched"]


class Containers(Beside):
    """Images and containers in a storage of their own, which goes with the folder."""

    def __init__(self, folder, broker, tools, binary, rust):
        for name in ("data", "config", "ledger"):
            place = folder / name
            place.mkdir(parents=True, mode=0o750)
            os.chown(place, USER, USER)
        super().__init__(folder / "ledger" / "shop.ndjson", broker)
        self.folder, self.tools, self.binary, self.rust = folder, tools, binary, rust
        self.group = f"outboxd-packaging-containers-{os.getpid()}"
        self.storage = ["--root", folder / "storage", "--runroot", folder / "run"]

    def buildah(self, *arguments, **more):
        return run("buildah", *self.storage, *arguments, **more)

    def podman(self, *arguments, **more):
        # crun refuses hosts with both versions of cgroups, runc takes them.
        return run("podman", *self.storage, "--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=none", *arguments, **more)

    def run(self, name, *arguments):
        """Podman's own limits are more than a host may have."""
        self.podman("run", "-d", f"--name={name}", f"--cgroup-parent=/{self.group}", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096", *arguments)

    def log(self):
        done = self.podman("logs", "--tail", "30", "outboxd", check=False)
        return done.stdout + done.stderr

    def facts(self, name, template):
        return self.podman("inspect", "--format", template, name).strip()

    def process(self):
        return int(self.facts("outboxd", "{{.State.Pid}}"))

    def proc(self, name):
        return Path(f"/proc/{self.process()}/{name}").read_text()

    def tell(self, *arguments, name="outboxd", **more):
        """The image's one program, run beside the daemon."""
        return self.podman("exec", name, "/usr/bin/outboxd", *arguments, **more)

    def status(self):
        return self.tell("status")

    def healthy(self, name="outboxd"):
        """By the image's own check, which is what a kubelet is told to run, too."""
        return self.podman("healthcheck", "run", name, check=False).returncode == 0

    def running(self, name="outboxd"):
        return self.facts(name, "{{.State.Running}}") == "true"

    def stop(self):
        self.podman("stop", "--time=45", "outboxd")
        return int(self.facts("outboxd", "{{.State.ExitCode}}"))

    def start(self):
        self.podman("start", "outboxd")
        until("it is healthy", 60, self.healthy)

    def kill(self):
        """Nobody starts it again here but this."""
        self.podman("kill", "--signal=KILL", "outboxd")
        until("it is gone", 30, lambda: not self.running())
        self.writes_on()
        self.start()

    # -- steps

    def build(self):
        base = self.buildah("from", "scratch").strip()
        self.buildah("add", "-q", base, rootfs(self.tools), "/", seconds=300)
        self.buildah("copy", "-q", base, ROOT / "scripts/packaging/shop.py", ROOT / "migrations/0001_event_tables.sql", "/opt/")
        self.buildah("run", "--isolation=chroot", base, "--", "mv", "/opt/0001_event_tables.sql", "/opt/outbox.sql")
        if not self.rust:
            cargo = self.folder / "cargo"
            cargo.write_text(CARGO)
            cargo.chmod(0o755)
            self.buildah("copy", "-q", base, cargo, "/usr/local/bin/cargo")
            self.buildah("copy", "-q", base, self.binary, "/opt/outboxd")
        self.buildah("commit", "-q", "--rm", base, BASE, seconds=300)
        rust = self.buildah("pull", "-q", self.rust, seconds=1800).strip() if self.rust else BASE
        self.buildah("build", "-q", "--isolation=chroot", "--network=host", "--format=docker", f"--build-arg=RUST={rust}", "-t", IMAGE, ROOT, seconds=7200)
        size = int(self.podman("image", "inspect", "--format", "{{.Size}}", IMAGE)) / 1e6
        assert size <= MEGABYTES_MAX, f"{size:.1f} MB"
        return [f"{size:.1f} MB", f"built in {self.rust}" if self.rust else "base images of Debian packages, the program built outside"]

    def what_the_image_says(self):
        image = json.loads(self.podman("image", "inspect", IMAGE))[0]
        config = image["Config"]
        uid, gid = config["User"].split(":")
        assert int(uid) and int(gid), config["User"]
        assert config["StopSignal"] in ("SIGTERM", "15"), config
        health = image.get("HealthCheck") or image.get("Healthcheck") or config.get("Healthcheck")
        assert health["Test"] == ["CMD", "/usr/bin/outboxd", "health", "--address", "127.0.0.1:9464"], health
        assert config["Entrypoint"] == ["/usr/bin/outboxd"] and config["Cmd"] == ["run"], config
        mounted = Path(self.podman("image", "mount", IMAGE).strip())
        try:
            files = [f"/{path.relative_to(mounted)}" for path in mounted.rglob("*") if path.is_file()]
            data = (mounted / "data").stat()
            program = (mounted / "usr/bin/outboxd").stat().st_size / 1e6
            owned = [path for path in mounted.rglob("*") if path.is_file() and path.stat().st_uid]
        finally:
            self.podman("image", "umount", IMAGE)
        programs = [name for name in files if "/bin/" in name or "/sbin/" in name]
        assert programs == ["/usr/bin/outboxd"], programs
        assert (data.st_uid, data.st_gid) == (int(uid), int(gid)), data
        assert not owned, f"files that the daemon could write: {owned}"
        return [f"user {config['User']}, one program of {program:.1f} MB and {len(files) - 1} other files"]

    def the_documented_command(self):
        """That of the Dockerfile's head, word for word, as another user than the image's."""
        lines = (ROOT / "Dockerfile").read_text().split("#   docker run ", 1)[1].splitlines()
        words = shlex.split(" ".join(line.strip("# \\") for line in lines[:next(at for at, line in enumerate(lines) if not line.endswith("\\")) + 1]))
        assert words[-1] == "outboxd" and "--read-only" in words, words
        here = self.folder / "documented"
        for name in ("outboxd", "data"):
            (here / name).mkdir(parents=True)
        (here / "outboxd" / "outboxd.toml").write_text(DOCUMENTED)
        os.chown(here / "data", APPLICATIONS_USER, APPLICATIONS_USER)
        mounts = [word.replace("./", f"{here}/") for word in words[:-1]]
        self.run("documented", f"--user={APPLICATIONS_USER}:{APPLICATIONS_USER}", "--network=none", *mounts, IMAGE)
        until("it is healthy", 60, lambda: self.healthy("documented"))
        told = self.tell("status", name="documented")
        self.podman("rm", "--force", "--time=45", "documented")
        assert "shop_to_lines" in told, told
        return [f"user {APPLICATIONS_USER}, an application that is not there yet"]

    def run_beside(self):
        secret = self.folder / "config" / "amqp-uri"
        secret.write_text(self.broker.uri)
        secret.chmod(0o400)
        os.chown(secret, USER, USER)
        (self.folder / "config" / "outboxd.toml").write_text(configuration("/data/shop.db", "/etc/outboxd/amqp-uri"))
        self.run("shop", "--network=none", f"--user={USER}:{USER}", "-v", f"{self.folder}/data:/data", "-v", f"{self.folder}/ledger:/ledger", BASE,
                   "/usr/bin/python3", "/opt/shop.py", "/data/shop.db", "/ledger/shop.ndjson", "150")
        self.writes_on()
        # As the head of the Dockerfile says; the host's network, because the broker is on loopback.
        self.run("outboxd", "--network=host", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges",
                   "--tmpfs=/control:mode=1777", "-v", f"{self.folder}/data:/data", "-v", f"{self.folder}/config:/etc/outboxd:ro", IMAGE)
        until("it is healthy", 60, self.healthy)
        return [self.confined(USER), "read-only", *self.settle()]

    def health(self):
        """Of a process that hangs it says so; of a wrong configuration beside one that works it says nothing."""
        assert self.healthy()
        config = self.folder / "config" / "outboxd.toml"
        right = config.read_text()
        config.write_text(right.replace("preset", "pretzel"))
        assert self.tell("reload", check=False).returncode, "a wrong configuration is no failed reload"
        assert self.healthy(), "a wrong configuration makes a daemon that works unhealthy"
        config.write_text(right)
        self.podman("kill", "--signal=STOP", "outboxd")
        assert not self.healthy(), "a process that hangs counts as healthy"
        self.podman("kill", "--signal=CONT", "outboxd")
        until("it is healthy again", 30, self.healthy)

    def restarted_together(self):
        """The application's container is killed and started too: each finds the files that the other one made."""
        self.rate(150)
        for name in ("shop", "outboxd", "shop"):
            self.podman("kill", "--signal=KILL", name)
            until(f"{name} is gone", 30, lambda name=name: not self.running(name))
            self.podman("start", name)
            self.writes_on()
        until("it is healthy", 60, self.healthy)
        return self.settle()

    def end(self):
        self.podman("rm", "--force", "--all", "--time=5", check=False)
        self.podman("rmi", "--force", "--all", check=False)
        remove_groups(self.group)


def lint(tools):
    linter = tools / "packaging" / "bin" / "hadolint"
    if not linter.exists():
        raise CannotRun("hadolint is not installed (scripts/setup packaging)")
    run(linter, "--no-color", ROOT / "Dockerfile")
    return run(linter, "--version").strip()


def try_image(steps, tools, folder, binary, rust=None):
    with steps.step("container: hadolint") as figures:
        figures.append(lint(tools))
    missing = [tool for tool in ("buildah", "podman", "runc") if not shutil.which(tool)]
    reason = "only root may (sudo make test-packaging)" if os.geteuid() else f"{', '.join(missing)}: not installed (scripts/setup packaging)" if missing else None
    if reason:
        steps.cannot("container", ORDER, reason)
        return
    with Broker(folder / "rabbitmq-beside-containers") as broker:
        containers = Containers(folder / "containers", broker, tools, binary, rust)
        try:
            steps.walk("container", ORDER, containers)
        finally:
            containers.end()
