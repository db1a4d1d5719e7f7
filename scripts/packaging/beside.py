"""What an application committed, by its own ledger, and what arrived at a broker: the same for a unit and for a container."""

import collections
import json
import os
import shutil
import time
from pathlib import Path

from steps import run, until

ROOT = Path(__file__).resolve().parents[2]


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

    def read(self):
        told = run("/usr/bin/python3", ROOT / "tests/tools/read_amqp.py", self.uri, "shop", "--until-idle", "0.5", "--declare", "quorum",
                   "--bind", "events=#", seconds=180)
        self.arrived += [json.loads(line) for line in told.splitlines()]
        return self.arrived


class Beside:
    """`path`: the ledger that shop.py writes."""

    def __init__(self, path, broker):
        self.path, self.broker, self.repeated = path, broker, 0

    def log(self):
        """The daemon's last lines."""
        raise NotImplementedError

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
