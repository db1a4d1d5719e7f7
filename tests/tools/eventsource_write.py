#!/usr/bin/env python3
"""Writes events with the real eventsource-py, as an application does; one JSON object for each on stdout.

    eventsource_write.py FILE AGGREGATES EVENTS [--write both|events|outbox] [--every SECONDS] [--tenants N]

FILE is made when it is not there (WAL, the library's own tables); an existing one is added to, in new aggregates. Event by event the
aggregates take turns, so that neighbours in the tables have different keys. A line, printed after both commits:
{"event_id", "aggregate_id", "aggregate_type", "event_type", "version", "position" (events), "outbox_id", "body"}; "body" is what the library's
own buses would send for it. The outbox row is committed after the event, apart: this release (0.8.1) can do no other.
"""

import argparse
import asyncio
import json
import sys
import uuid

sys.dont_write_bytecode = True

# First our own: it changes the interpreter.
import eventsource_events as shop  # noqa: E402, I001
import aiosqlite  # noqa: E402
from eventsource import ExpectedVersion, SQLiteEventStore, SQLiteOutboxRepository, StreamId  # noqa: E402


async def write(options):
    store = SQLiteEventStore(options.file)
    await store.current_position()  # Opens the file and makes the tables.
    async with aiosqlite.connect(options.file) as connection:
        await connection.execute("PRAGMA busy_timeout = 5000")
        outbox = SQLiteOutboxRepository(connection)
        aggregates = [uuid.uuid4() for _ in range(options.aggregates)]
        tenants = [uuid.uuid4() for _ in range(options.tenants)]
        for version in range(1, options.events + 1):
            for number, aggregate in enumerate(aggregates):
                tenant = tenants[number % len(tenants)] if tenants else None
                await one(options, store, outbox, shop.make(number, aggregate, version, tenant))
                if options.every:
                    await asyncio.sleep(options.every)
    await store.close()


async def one(options, store, outbox, event):
    line = {
        "event_id": str(event.event_id),
        "aggregate_id": str(event.aggregate_id),
        "aggregate_type": event.aggregate_type,
        "event_type": event.event_type,
        "version": event.aggregate_version,
    }
    if options.write != "outbox":
        stream = StreamId(event.aggregate_id, event.aggregate_type)
        done = await store.append(stream, [event], ExpectedVersion.exact(event.aggregate_version - 1))
        line["position"] = done.position.key[0]
    if options.write != "events":
        line["outbox_id"] = str(await outbox.add_event(event))
    line["body"] = event.model_dump_json()
    print(json.dumps(line, ensure_ascii=False), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("aggregates", type=int)
    parser.add_argument("events", type=int, help="of each aggregate")
    parser.add_argument("--write", choices=("both", "events", "outbox"), default="both")
    parser.add_argument("--every", type=float, default=0, metavar="SECONDS", help="a pause after each event")
    parser.add_argument("--tenants", type=int, default=2, help="0: no tenant")
    asyncio.run(write(parser.parse_args()))


if __name__ == "__main__":
    main()
