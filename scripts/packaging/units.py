"""The units as they are shipped, in a machine that systemd booted, beside an application that writes all the time."""

import json
import shutil
import time
from pathlib import Path

from beside import Beside, Broker, configuration
from machine import Machine
from steps import CannotRun, until

ROOT = Path(__file__).resolve().parents[2]
SHOP = """[Unit]
Description=The application
[Service]
User=shop
Group=shop
UMask={umask}
ExecStart=/usr/bin/python3 /opt/shop.py /srv/shop/shop.db /srv/ledger/shop.ndjson 150
"""
CONFIG = """[daemon]
control = "unix:/run/outboxd/outboxd.sock"

""" + configuration("/srv/shop/shop.db", "/run/credentials/outboxd.service/amqp-uri")
LINES = """
[sinks.lines]
type = "file"
path = "/srv/shop/lines.ndjson"

[relays.shop_to_lines]
source = "shop"
sink = "lines"
start = "first"
"""
TENANT = """[daemon]
control = "unix:/run/outboxd/NAME/outboxd.sock"

[sources.shop]
path = "/srv/shop/NAME/shop.db"
preset = "outboxd"
read = "outbox"
""" + LINES.replace("/srv/shop/", "/srv/shop/NAME/")
ORDER = ["install", "without_its_secret", "credentials", "only_its_folder", "reload", "drain", "kills", "outage", "watchdog", "wrong_configuration", "weights",
         "second_user", "tenants", "untouched"]


class Trial(Beside):
    def __init__(self, machine, broker, binary):
        super().__init__(machine.path("/srv/ledger/shop.ndjson"), broker)
        self.machine, self.binary = machine, binary

    def log(self):
        return self.machine.journal("outboxd", 30)

    def process(self, unit="outboxd"):
        return int(self.machine.show(unit, "MainPID")[0])

    def proc(self, name):
        return self.machine.tell("cat", f"/proc/{self.process()}/{name}")

    def status(self):
        return self.machine.tell("/usr/bin/outboxd", "status", "-c", "/etc/outboxd/outboxd.toml")

    def active(self, unit="outboxd"):
        return self.machine.show(unit, "ActiveState", "SubState") == ["active", "running"]

    def healthy(self):
        return self.active()

    def stop(self):
        self.machine.ctl("stop", "outboxd")
        result, code = self.machine.show("outboxd", "Result", "ExecMainStatus")
        return int(code) if result == "success" else result

    def start(self):
        self.machine.ctl("start", "outboxd")

    def kill(self):
        before = int(self.machine.show("outboxd", "NRestarts")[0])
        self.machine.ctl("kill", "--signal=KILL", "outboxd")
        until("systemd starts it again", 60, lambda: int(self.machine.show("outboxd", "NRestarts")[0]) > before and self.active())

    # -- steps

    def install(self):
        machine = self.machine
        for name in ("outboxd.service", "outboxd@.service"):
            shutil.copy(ROOT / "systemd" / name, machine.path(f"/etc/systemd/system/{name}"))
        shutil.copy(self.binary, machine.path("/usr/bin/outboxd"))
        machine.path("/usr/bin/outboxd").chmod(0o755)
        shutil.copy(ROOT / "scripts/packaging/shop.py", machine.path("/opt/shop.py"))
        shutil.copy(ROOT / "migrations/0001_event_tables.sql", machine.path("/opt/outbox.sql"))
        machine.tell("useradd", "--system", "--user-group", "--no-create-home", "shop")
        for folder in ("/srv/shop", "/srv/ledger"):
            machine.tell("install", "-d", "-o", "shop", "-g", "shop", "-m", "0750", folder)
        machine.write("/etc/systemd/system/shop.service", SHOP.format(umask="0077"))
        machine.write("/etc/outboxd/outboxd.toml", CONFIG)
        self.drop_in("credentials.conf")
        machine.ctl("start", "shop")
        self.writes_on()

    def drop_in(self, name, unit="outboxd.service"):
        self.machine.write(f"/etc/systemd/system/{unit}.d/{name}", (ROOT / "systemd/drop-ins" / name).read_text())
        self.machine.ctl("daemon-reload")

    def without_its_secret(self):
        done = self.machine.ctl("start", "outboxd", check=False)
        assert done.returncode, "it starts without the secret that LoadCredential names"
        until("it ends", 30, lambda: self.machine.show("outboxd", "ActiveState")[0] != "active")
        self.machine.ctl("stop", "outboxd")
        self.machine.ctl("reset-failed", "outboxd", check=False)

    def credentials(self):
        machine = self.machine
        machine.write("/etc/outboxd/credentials/amqp-uri", self.broker.uri, 0o600)
        began = time.monotonic()
        machine.ctl("start", "outboxd")
        ready = time.monotonic() - began
        assert self.active(), machine.journal("outboxd")
        kind, status, user = machine.show("outboxd", "Type", "StatusText", "User")
        assert (kind, user) == ("notify", "shop") and status, (kind, status, user)
        confined = self.confined(machine.tell("id", "-u", "shop").strip())
        log = machine.journal("outboxd")
        assert self.broker.uri not in log and "guest:guest" not in log, "the secret stands in the log"
        return [f"ready after {ready:.2f} s", confined, *self.settle()]

    def only_its_folder(self):
        """In the daemon's own view of the files, as its own user."""
        inside = ["nsenter", "-t", self.process(), "-m", "-S", self.machine.tell("id", "-u", "shop").strip(), "--"]
        machine = self.machine
        secret = machine.tell(*inside, "cat", "/run/credentials/outboxd.service/amqp-uri")
        assert secret.strip() == self.broker.uri
        for place in ("/etc/outboxd/credentials/amqp-uri", "/etc/shadow"):
            assert machine.tell(*inside, "cat", place, check=False).returncode, f"it can read {place}"
        as_root = inside[:4] + ["--"]
        for folder in ("/etc", "/usr/bin", "/srv/ledger", "/var", "/opt"):
            assert machine.tell(*as_root, "touch", f"{folder}/touched", check=False).returncode, f"{folder} is writable"
        machine.tell(*inside, "touch", "/srv/shop/touched")
        machine.tell(*inside, "rm", "/srv/shop/touched")
        assert machine.tell(*inside, "cat", "/proc/locks").strip(), "it cannot see who holds a lock"
        return ["its folder writable, all else read-only; its own copy of the secret readable, root's not"]

    def reload(self):
        machine, pid = self.machine, self.process()
        self.rate(150)
        machine.write("/etc/outboxd/outboxd.toml", CONFIG + LINES)
        machine.ctl("reload", "outboxd")
        lines = machine.path("/srv/shop/lines.ndjson")
        until("the new relay carries", 30, lambda: lines.exists() and lines.stat().st_size)
        machine.write("/etc/outboxd/outboxd.toml", CONFIG.replace("preset", "pretzel"))
        assert machine.ctl("reload", "outboxd", check=False).returncode, "a wrong configuration is no failed reload"
        assert "pretzel" in machine.journal("outboxd"), "nothing says why"
        assert self.active()
        self.writes_on()
        assert self.process() == pid, "it was started anew"
        machine.write("/etc/outboxd/outboxd.toml", CONFIG)
        machine.ctl("reload", "outboxd")
        return ["a new relay taken on, a wrong configuration refused, one process all the time", *self.settle()]

    def watchdog(self):
        """A process that hangs does not feed it."""
        self.rate(150)
        self.writes_on()
        pid, before = self.process(), int(self.machine.show("outboxd", "NRestarts")[0])
        began = time.monotonic()
        self.machine.ctl("kill", "--kill-whom=main", "--signal=STOP", "outboxd")
        self.writes_on()
        until("systemd ends and starts it", 120, lambda: int(self.machine.show("outboxd", "NRestarts")[0]) > before and self.active())
        took = time.monotonic() - began
        assert self.process() != pid
        assert "Watchdog timeout" in self.machine.journal("outboxd"), self.machine.journal("outboxd", 30)
        return [f"at work again {took:.0f} s after it hung (WatchdogSec=30)", *self.settle()]

    def wrong_configuration(self):
        """What does not get better by trying again is not tried again."""
        self.machine.write("/etc/outboxd/outboxd.toml", "[daemon]\nno_such_key = 1\n")
        self.machine.ctl("restart", "outboxd", check=False)
        until("it is given up", 30, lambda: self.machine.show("outboxd", "ActiveState")[0] == "failed")
        code, restarts = self.machine.show("outboxd", "ExecMainStatus", "NRestarts")
        time.sleep(3)  # RestartSec=2: by then it would have been.
        assert code == "78" and self.machine.show("outboxd", "ActiveState")[0] == "failed", (code, restarts)
        self.machine.write("/etc/outboxd/outboxd.toml", CONFIG)
        self.machine.ctl("reset-failed", "outboxd")
        self.machine.ctl("start", "outboxd")
        return ["exit 78, left alone", *self.settle()]

    def second_user(self):
        """As the drop-in's own lines say; each of the two is killed and finds the files that the other one made."""
        machine = self.machine
        machine.ctl("stop", "outboxd")
        machine.ctl("stop", "shop")
        text = (ROOT / "systemd/drop-ins/second-user.conf").read_text()
        commands = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
        assert len(commands) == 2, commands
        machine.tell("sh", "-ec", commands[0])
        self.drop_in("second-user.conf")
        # Without what the other line prepares it would lock the application out: it does not touch the file, and the application does not notice.
        self.rate(150)
        machine.ctl("start", "shop")
        self.writes_on()
        machine.ctl("start", "outboxd")
        owner = machine.tell("id", "-u", "shop").strip()
        until("it refuses, and says why", 30, lambda: f"/srv/shop/shop.db (uid {owner}, " in self.log() and "consumer_halted" in self.log())
        self.writes_on()
        machine.ctl("stop", "shop", "outboxd")
        machine.tell("sh", "-ec", commands[1])
        machine.write("/etc/systemd/system/shop.service", SHOP.format(umask="0007"))
        machine.ctl("daemon-reload")
        machine.ctl("start", "shop")
        machine.ctl("start", "outboxd")
        assert machine.show("outboxd", "User", "Group") == ["outboxd", "shop"]
        self.writes_on()
        for unit in ("outboxd", "shop", "outboxd"):
            machine.ctl("kill", "--signal=KILL", unit)
            if unit == "shop":
                until("the application is gone", 30, lambda: not self.active("shop"))
                machine.ctl("reset-failed", "shop", check=False)
                machine.ctl("start", "shop")
            until("outboxd is at work", 60, self.active)
            self.writes_on()
        # Stopped for good, and its files stay: they must not be in the application's way.
        figures = self.settle()
        machine.ctl("stop", "shop")
        machine.ctl("stop", "outboxd")
        machine.ctl("start", "outboxd")
        self.rate(150)
        machine.ctl("start", "shop")
        self.writes_on()
        machine.ctl("kill", "--signal=KILL", "outboxd")
        self.writes_on()
        until("outboxd is at work", 60, self.active)
        owners = machine.tell("sh", "-c", "stat -c '%n %U:%G %a' /srv/shop/*").split("\n")
        return [*figures, *self.settle()[1:], ", ".join(line.removeprefix("/srv/shop/") for line in owners if line)]

    def tenants(self):
        machine = self.machine
        for name in ("acme", "globex"):
            machine.tell("install", "-d", "-o", "shop", "-g", "shop", "-m", "0750", f"/srv/shop/{name}")
            machine.write(f"/etc/outboxd/{name}.toml", TENANT.replace("NAME", name))
            write = ("import sqlite3; c = sqlite3.connect('shop.db'); c.execute('PRAGMA journal_mode = WAL'); "
                     "c.executescript(open('/opt/outbox.sql').read()); "
                     f"c.executemany('INSERT INTO outbox (id, type, key, payload) VALUES (?, ?, ?, ?)', [('{name}-%d' % n, 'T', 'k', '{{}}') for n in range(100)]); "
                     "c.commit()")
            machine.tell("setpriv", "--reuid", "shop", "--regid", "shop", "--clear-groups", "sh", "-ec", f'cd /srv/shop/{name} && /usr/bin/python3 -c "$0"', write)
            machine.ctl("start", f"outboxd@{name}")
        for name, other in (("acme", "globex"), ("globex", "acme")):
            lines = machine.path(f"/srv/shop/{name}/lines.ndjson")
            until(f"{name}'s events arrive", 30, lambda lines=lines: lines.exists() and len(lines.read_text().splitlines()) >= 100)
            ids = [json.loads(line)["id"] for line in lines.read_text().splitlines()]
            assert ids == [f"{name}-{n}" for n in range(100)], ids[:5]
            inside = ["nsenter", "-t", self.process(f"outboxd@{name}"), "-m", "--"]
            seen = machine.tell(*inside, "ls", "/srv/shop").split()
            assert seen == [name], f"{name} sees {seen}"
            told = machine.tell("/usr/bin/outboxd", "status", "-c", f"/etc/outboxd/{name}.toml")
            assert "shop_to_lines" in told, told
            assert other not in machine.tell(*inside, "ls", "/srv")
        # One is killed, the other one does not notice.
        pid = self.process("outboxd@globex")
        machine.ctl("kill", "--signal=KILL", "outboxd@acme")
        until("acme's is at work again", 60, lambda: machine.show("outboxd@acme", "NRestarts")[0] == "1" and self.active("outboxd@acme"))
        assert self.process("outboxd@globex") == pid
        machine.ctl("stop", "outboxd@acme", "outboxd@globex")
        return ["two tenants, each sees its own folder alone"]

    def weights(self):
        self.drop_in("weights.conf")
        weight, = self.machine.show("outboxd", "CPUWeight")
        assert weight == "20", weight
        controllers = self.machine.tell("sh", "-c", "cat /sys/fs/cgroup/cgroup.controllers /sys/fs/cgroup/cgroup.subtree_control 2>/dev/null || true")
        if "cpu" not in controllers.split():
            raise CannotRun("systemd takes the weight, and has no processor controller here (`cpu` of cgroup v2) by which to apply it")
        group = self.machine.show("outboxd", "ControlGroup")[0]
        applied = self.machine.tell("cat", f"/sys/fs/cgroup{group}/cpu.weight").strip()
        assert applied == "20", applied
        return ["cpu.weight 20 in the service's group"]


def try_units(steps, tools, folder, binary):
    begun = False
    with steps.step("systemd: a machine boots in systemd-nspawn") as figures:
        began = time.monotonic()
        with Machine(tools, folder / "machine") as machine, Broker(folder / "rabbitmq") as broker:
            begun = True
            figures.append(f"{machine.ctl('--version').splitlines()[0]}")
            steps.walk("systemd", ORDER, Trial(machine, broker, binary))
            figures.append(f"{time.monotonic() - began:.0f} s with all steps in it")
    if not begun:
        steps.cannot("systemd", ORDER, "no machine was booted")
