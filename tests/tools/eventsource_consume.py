#!/usr/bin/env python3
"""Takes events with eventsource-py's own buses, unchanged, as its users' consumers do; one JSON object for each on stdout.

    eventsource_consume.py rabbitmq AMQP_URI [--exchange events] [--group default] --count N [--timeout SECONDS]
    eventsource_consume.py kafka BOOTSTRAP [--prefix events] [--group default] --count N [--timeout SECONDS]

A line: {"event_id", "aggregate_id", "aggregate_type", "event_type", "version", "event": the whole event as the library took it in}. A handler is
registered for each class of eventsource_events.py; what the library skips or cannot read does not appear. Exit codes: 0 after N
events (what came behind them may be swallowed: give the exact N, or another --group), 75 when --timeout came first. "ready" on
stderr: connected, and the queue declared (RabbitMQ) or the topic {prefix}.stream, which must be there, subscribed to from its
beginning (Kafka).
"""

import argparse
import asyncio
import contextlib
import json
import logging
import sys

sys.dont_write_bytecode = True

# First our own: it changes the interpreter.
import eventsource_events as shop  # noqa: E402, I001
from eventsource import KafkaEventBus, KafkaEventBusConfig, RabbitMQEventBus, RabbitMQEventBusConfig  # noqa: E402


class Printer:
    def __init__(self, count):
        self.left = count
        self.done = asyncio.Event()

    async def __call__(self, event):
        if self.left == 0:
            return
        line = {
            "event_id": str(event.event_id),
            "aggregate_id": str(event.aggregate_id),
            "aggregate_type": event.aggregate_type,
            "event_type": event.event_type,
            "version": event.aggregate_version,
            "event": event.model_dump(mode="json"),
        }
        print(json.dumps(line, ensure_ascii=False), flush=True)
        self.left -= 1
        if self.left == 0:
            self.done.set()


def open_bus(options):
    if options.bus == "rabbitmq":
        return RabbitMQEventBus(RabbitMQEventBusConfig(
            rabbitmq_url=options.url, exchange_name=options.exchange, consumer_group=options.group, prefetch_count=100,
            reconnect_delay=0.2, max_reconnect_delay=1.0, retry_base_delay=0.05))
    return KafkaEventBus(KafkaEventBusConfig(
        bootstrap_servers=options.url, topic_prefix=options.prefix, consumer_group=options.group, retry_base_delay=0.05))


async def consume(options):
    bus = open_bus(options)
    printer = Printer(options.count)
    for kind in shop.ALL:
        bus.subscribe(kind, printer)
    await bus.connect()
    task = bus.start_consuming_in_background()
    print("ready", file=sys.stderr, flush=True)
    code = 0
    try:
        await asyncio.wait_for(printer.done.wait(), options.timeout)
    except TimeoutError:
        code = 75
        print(f"eventsource_consume: {options.count - printer.left} of {options.count} within {options.timeout} s", file=sys.stderr)
    await asyncio.sleep(0.1)  # The last handler returns, and its event is acknowledged.
    with contextlib.suppress(Exception):
        await bus.shutdown(timeout=0.5)
    task.cancel()
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bus", choices=("rabbitmq", "kafka"))
    parser.add_argument("url")
    parser.add_argument("--exchange", default="events")
    parser.add_argument("--prefix", default="events")
    parser.add_argument("--group", default="default")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--verbose", action="store_true", help="the library's own log, on stderr")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.ERROR, stream=sys.stderr)
    sys.exit(asyncio.run(consume(options)))


if __name__ == "__main__":
    main()
