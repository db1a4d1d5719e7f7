"""An application that writes all the time, a broker, and a daemon between them that is stopped, killed and left without its broker: nothing may
be lost, out of order, or in the application's way. The same for a unit and for a container, which say how their daemon is started and ended."""

import collections
import contextlib
import json
import os
import shutil
import time
from pathlib import Path

from steps import run, until

ROOT = Path(__file__).resolve().parents[2]
KILLS, STOPS = 5, 3
CONFIG = """[sources.shop]
path = "PATH"
preset = "outboxd"
read = "outbox"

[sinks.bus]
type = "amqp"
uri_file = "SECRET"
exchange = "events"
routing_key = "{type}"

[relays.shop_to_bus]
source = "shop"
sink = "bus"
start = "first"
"""


def configuration(path, secret):
    return CONFIG.replace("PATH", path).replace("SECRET", secret)


class Broker:
    """A RabbitMQ of its own on loopback, and all that ever came out of its queue."""

    def __init__(self, folder):
        self.folder, self.arrived = folder, []

    def __enter__(self):
        self.uri = json.loads(run(ROOT / "scripts/broker", "rabbitmq", "start", self.folder, "--watch", os.getpid(), "--remove"))["uri"]
        self.read()
        return self

    def __exit__(self, *_):
        run(ROOT / "scripts/broker", "rabbitmq", "kill", self.folder, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def away(self):
        """It refuses whoever calls, and keeps what it has."""
        run(ROOT / "scripts/broker", "rabbitmq", "stop-app", self.folder)
        yield
        run(ROOT / "scripts/broker", "rabbitmq", "start-app", self.folder)

    def read(self):
        told = run("/usr/bin/python3", ROOT / "tests/tools/read_amqp.py", self.uri, "shop", "--until-idle", "0.5", "--declare", "quorum",
                   "--bind", "events=#", seconds=180)
        self.arrived += [json.loads(line) for line in told.splitlines()]
        return self.arrived


class Beside:
    """`path`: the ledger that shop.py writes."""

    def __init__(self, path, broker):
        self.path, self.broker, self.repeated = path, broker, 0

    # -- what a unit and a container do in ways of their own

    def log(self):
        """The daemon's last lines."""
        raise NotImplementedError

    def process(self):
        """The daemon's, by its number where it runs."""
        raise NotImplementedError

    def proc(self, name):
        """What the file of /proc/PID says of the daemon."""
        raise NotImplementedError

    def status(self):
        """What `outboxd status` prints beside the daemon."""
        raise NotImplementedError

    def healthy(self):
        """As who watches over it finds it."""
        raise NotImplementedError

    def stop(self):
        """As an operator stops it; its exit code."""
        raise NotImplementedError

    def start(self):
        """Until it is at work."""
        raise NotImplementedError

    def kill(self):
        """SIGKILL; it is at work again behind this."""
        raise NotImplementedError

    # -- steps

    def drain(self):
        """Stopped under load: it settles what is in flight, so nothing comes twice."""
        slowest = 0.0
        for _ in range(STOPS):
            self.rate(300)
            self.writes_on()
            began = time.monotonic()
            code = self.stop()
            slowest = max(slowest, time.monotonic() - began)
            assert code == 0, f"exit {code}: {self.log()}"
            self.start()
        repeated = self.repeated
        figures = self.settle()
        assert self.repeated == repeated, f"{figures}: a drain sends nothing twice"
        return [f"{STOPS} stops under load, the slowest {slowest:.2f} s", *figures]

    def kills(self):
        for _ in range(KILLS):
            self.rate(300)
            self.writes_on()
            self.kill()
            self.writes_on()
        return [f"{KILLS} kills", *self.settle()]

    def outage(self):
        """Without its broker it is as healthy as before: nobody starts it anew, and nobody takes the application away with it."""
        self.rate(150)
        self.writes_on()
        before, looks = self.process(), 0
        with self.broker.away():
            until("it notices", 30, lambda: "unavailable" in self.status())
            for looks in range(1, 11):
                assert self.healthy(), self.log()
                self.writes_on()
        figures = self.settle()
        assert self.process() == before, "it was started anew"
        return [f"looked at {looks} times, healthy each time, one process all the time", *figures]

    def untouched(self):
        return [self.unharmed()]

    # -- what they rest on

    def confined(self, user):
        """As that user, without capabilities, and with a filter of system calls."""
        facts = dict(line.split(":\t", 1) for line in self.proc("status").splitlines() if ":\t" in line)
        assert facts["Uid"].split() == [str(user)] * 4, facts["Uid"]
        assert int(facts["CapEff"], 16) == 0 and int(facts["CapBnd"], 16) == 0 and facts["NoNewPrivs"] == "1" and facts["Seccomp"] == "2", facts
        return "no capabilities, seccomp on"

    def ledger(self):
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def committed(self):
        return [name for line in self.ledger() for name in line.get("ids", [])]

    def rate(self, rate):
        new = self.path.with_name("rate.new")
        new.write_text(str(rate))
        new.rename(f"{self.path}.rate")

    def writes_on(self, seconds=30, least=30):
        """The application gets on with its work."""
        before = len(self.committed())
        until("the application writes", seconds, lambda: len(self.committed()) >= before + least)

    def settle(self, seconds=90):
        """The application pauses, and all that it committed arrives."""
        self.rate(0)
        until("the application pauses", 10, self._pauses)
        wanted = set(self.committed())

        def all_there():
            return wanted <= {message["message_id"] for message in self.broker.read()}

        try:
            until("all events arrive", seconds, all_there)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.log()}") from None
        return self.judge()

    def _pauses(self):
        before = len(self.ledger())
        time.sleep(0.5)
        return len(self.ledger()) == before

    def judge(self):
        """Nothing lost, nothing that was never committed, each key in order by first arrival; how many came twice since the last look."""
        committed = self.committed()
        arrived = [message["message_id"] for message in self.broker.arrived]
        lost, invented = set(committed) - set(arrived), set(arrived) - set(committed)
        assert not lost and not invented, f"{len(lost)} lost, {len(invented)} that nobody committed"
        newest, seen = collections.defaultdict(int), set()
        for message in self.broker.arrived:
            if message["message_id"] in seen:
                continue
            seen.add(message["message_id"])
            payload = json.loads(message["body"])
            assert payload["n"] > newest[payload["key"]], f"{payload} came after {newest[payload['key']]}"
            newest[payload["key"]] = payload["n"]
        repeated = len(arrived) - len(seen)
        new, self.repeated = repeated - self.repeated, repeated
        return [f"{len(committed)} events so far, 0 lost, in order", f"{new} twice"]

    def unharmed(self):
        """What the application noticed of all this."""
        lines = self.ledger()
        errors = [line["error"] for line in lines if "error" in line]
        assert not errors, f"{len(errors)} writes failed: {errors[0]}"
        times = sorted(line["seconds"] for line in lines if "seconds" in line)
        return f"{len(times)} transactions, none failed, p99 {times[len(times) * 99 // 100] * 1000:.0f} ms, longest {times[-1] * 1000:.0f} ms"
