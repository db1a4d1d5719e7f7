"""A machine of Debian packages that systemd boots in, by systemd-nspawn; its network is the host's, so it reaches brokers on loopback."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from steps import CannotRun, note, run, until

PACKAGES = "systemd,systemd-sysv,dbus,python3,ca-certificates,libssl3,zlib1g"
SUITE = "bookworm"
# On a host without systemd: the hierarchies in which a machine gets a group of its own, and what nspawn leaves in them.
HIERARCHIES = [path for path in map(Path, ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if (path / "cgroup.procs").exists()]


def rootfs(tools):
    """Made once, and kept as an archive."""
    tar = tools / "machines" / f"root-{SUITE}.tar"
    stamp = tools / "machines" / f"root-{SUITE}.packages"
    if tar.exists() and stamp.exists() and stamp.read_text() == PACKAGES:
        return tar
    tar.parent.mkdir(parents=True, exist_ok=True)
    note(f"making a root file system of Debian packages ({PACKAGES})")
    half = tar.with_suffix(".half.tar")
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE, half, seconds=900)
    half.rename(tar)
    stamp.write_text(PACKAGES)
    return tar


def remove_groups(name):
    """Of processes that are gone, in whichever hierarchies they were; the innermost first."""
    for group in [*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")]:
        for folder in sorted([*group.rglob("*/"), group], key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):
                folder.rmdir()


class Machine:
    """Booted at `with`; ended and removed behind it."""

    def __init__(self, tools, folder):
        self.folder, self.root, self.console = folder, folder / "root", folder / "console.log"
        if os.geteuid():
            raise CannotRun("only root may boot a machine (sudo make test-packaging)")
        if not shutil.which("systemd-nspawn"):
            raise CannotRun("systemd-nspawn is not installed (scripts/setup packaging)")
        self.tar = rootfs(tools)
        self.leader = None

    def __enter__(self):
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        run("tar", "-xf", self.tar, "-C", self.root)
        with contextlib.ExitStack() as stack:
            self._boot()
            stack.callback(self._end)
            try:
                until("the machine's systemd answers", 60, self._is_up)
            except TimeoutError:
                raise CannotRun(f"systemd does not come up in systemd-nspawn here: {self.console.read_text(errors='replace')[-600:]}") from None
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def _boot(self):
        self.groups = []
        command = ["systemd-nspawn", "-q", "-D", str(self.root), "--boot", "--register=no", f"--machine={self.name}", "--link-journal=no",
                   "--console=pipe", "--resolv-conf=off", "--timezone=off"]
        if not Path("/run/systemd/system").is_dir():
            command.insert(1, "--keep-unit")
            for hierarchy in HIERARCHIES:
                group = hierarchy / self.name
                group.mkdir(exist_ok=True)
                self.groups.append(group)
        with self.console.open("wb") as console:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                                            preexec_fn=self._enter_groups)

    def _enter_groups(self):
        for group in self.groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def name(self):
        return f"outboxd-packaging-{os.getpid()}"

    def _is_up(self):
        if self.process.poll() is not None:
            raise CannotRun(f"systemd-nspawn does not boot here: {self.console.read_text(errors='replace')[-600:].strip()}")
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            self.leader = int(children[0]) if children else None
        if self.leader is None:
            return False
        # It goes into the machine's namespaces: there may be none yet.
        state = self.tell("systemctl", "is-system-running", check=False)
        return state.stdout.strip() in ("running", "degraded")

    def _end(self):
        """A shutdown as at home; then, if need be, SIGKILL to the machine's first process, which takes all others with it."""
        if self.process.poll() is None and self.leader:
            os.kill(self.leader, signal.SIGRTMIN + 4)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader or self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        remove_groups(self.name)
        shutil.rmtree(self.root, ignore_errors=True)

    def tell(self, *command, check=True, seconds=120):
        """Runs it in there as root; what it printed."""
        return run("nsenter", "-t", self.leader, "-a", "--", *command, check=check, seconds=seconds)

    def ctl(self, *arguments, **more):
        return self.tell("systemctl", "--no-pager", *arguments, **more)

    def show(self, unit, *properties):
        told = self.ctl("show", unit, "-p", ",".join(properties))
        values = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
        return [values.get(name, "") for name in properties]

    def journal(self, unit, lines=400):
        return self.tell("journalctl", "--no-pager", "-o", "cat", "-n", lines, "-u", unit)

    def path(self, place):
        """Of a file in there, from here."""
        return self.root / place.lstrip("/")

    def write(self, place, text, mode=0o644):
        path = self.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path
