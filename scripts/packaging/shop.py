#!/usr/bin/python3
"""The application beside which outboxd is tried: `shop.py DATABASE LEDGER RATE` writes RATE transactions a second until SIGTERM.

An event of it: key `order-K`, payload `{"key": "order-K", "n": N}` with N counting up for each key. The ledger says before a transaction
`{"intends": [...]}`, and after its commit `{"ids": [...], "seconds": how long it took}`, or `{"error": ...}` when it failed. Killed between the
two it looks, at its next start, which of them came to be. `RATE` is read anew from the file LEDGER.rate where there is one, so that it can be
told to pause.
"""

import json
import pathlib
import signal
import sqlite3
import sys
import time
import uuid

KEYS = 20


def main():
    database, ledger, rate = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])
    told = pathlib.Path(f"{ledger}.rate")
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    connection = sqlite3.connect(database, timeout=5, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'outbox'").fetchone():
        connection.executescript(pathlib.Path("/opt/outbox.sql").read_text())
    connection.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, number INTEGER NOT NULL)")
    after_a_kill(connection, ledger)
    number = connection.execute("SELECT coalesce(max(number), 0) FROM orders").fetchone()[0]
    with ledger.open("a", buffering=1) as lines:
        while not stopping:
            if told.exists():
                rate = float(told.read_text() or 0)
            if rate <= 0:
                time.sleep(0.05)
                continue
            began = time.monotonic()
            number += 1
            ids = [str(uuid.uuid4()) for _ in range(1 + number % 3)]
            lines.write(json.dumps({"intends": ids}) + "\n")
            try:
                write(connection, number, ids)
                lines.write(json.dumps({"ids": ids, "seconds": time.monotonic() - began}) + "\n")
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                lines.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            time.sleep(max(0.0, 1 / rate - (time.monotonic() - began)))


def after_a_kill(connection, ledger):
    last = ledger.read_text().splitlines()[-1:] if ledger.exists() else []
    intended = json.loads(last[0]).get("intends") if last else None
    if intended:
        is_there = connection.execute("SELECT 1 FROM outbox WHERE id = ?", (intended[0],)).fetchone()
        with ledger.open("a") as lines:
            lines.write(json.dumps({"ids": intended if is_there else []}) + "\n")


def write(connection, number, ids):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO orders (number) VALUES (?)", (number,))
    for at, name in enumerate(ids):
        key = f"order-{number % KEYS}"
        payload = json.dumps({"key": key, "n": number * 10 + at})
        connection.execute("INSERT INTO outbox (id, type, key, payload) VALUES (?, 'OrderPlaced', ?, ?)", (name, key, payload))
    connection.execute("COMMIT")


if __name__ == "__main__":
    main()
