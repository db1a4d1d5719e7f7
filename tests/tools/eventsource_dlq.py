#!/usr/bin/env python3
"""Looks at dead letters with eventsource-py's own commands, unchanged, as its users do; one JSON object for each on stdout.

    eventsource_dlq.py sqlite FILE PROJECTION [--resolve]
    eventsource_dlq.py rabbitmq AMQP_URI EXCHANGE [--replay MESSAGE_ID]
    eventsource_dlq.py kafka BOOTSTRAP PREFIX

sqlite: what SQLDLQRepository lists as failed, then {"stats": ..}; --resolve marks each as resolved by "a person" afterwards. rabbitmq: what
get_dlq_messages() lists of the queue EXCHANGE.default.dlq, which is made, with all that belongs to it, when it is not there; --replay has one sent to
where it was to go at first. kafka: the first that it lists of the topic PREFIX.stream.dlq, where there must be two. Exit code 1 when a replay did not find its message.
"""

import argparse
import asyncio
import dataclasses
import json
import logging
import sys

sys.dont_write_bytecode = True

# First our own: it changes the interpreter.
import eventsource_events  # noqa: E402, F401, I001
from eventsource import (  # noqa: E402
    KafkaEventBus, KafkaEventBusConfig, RabbitMQEventBus, RabbitMQEventBusConfig, SQLDLQRepository, create_async_engine,
)


def tell(what):
    print(json.dumps(what, default=str, ensure_ascii=False), flush=True)


async def sqlite(options):
    engine = create_async_engine(f"sqlite+aiosqlite:///{options.url}")
    repository = SQLDLQRepository(engine)
    failed = await repository.get_failed_events(projection_name=options.name)
    for entry in failed:
        tell(dataclasses.asdict(entry))
    tell({"stats": dataclasses.asdict(await repository.get_failure_stats())})
    for entry in failed if options.resolve else []:
        await repository.mark_retrying(entry.id)
        await repository.mark_resolved(entry.id, "a person")
    await engine.dispose()
    return 0


async def rabbitmq(options):
    bus = RabbitMQEventBus(RabbitMQEventBusConfig(rabbitmq_url=options.url, exchange_name=options.name, consumer_group="default"))
    await bus.connect()
    found = True
    if options.replay:
        found = await bus.replay_dlq_message(options.replay)
    else:
        # It puts back what it has looked at, and would look at the same again.
        count = await bus.get_dlq_message_count()
        for message in await bus.get_dlq_messages(limit=count) if count else []:
            tell(dataclasses.asdict(message))
    await bus.shutdown(timeout=0.5)
    return 0 if found else 1


async def kafka(options):
    bus = KafkaEventBus(KafkaEventBusConfig(bootstrap_servers=options.url, topic_prefix=options.name, consumer_group="default"))
    await bus.connect()
    # It goes on waiting until there is one more than it was asked for; and its count raises an error.
    for message in await bus.get_dlq_messages(limit=1):
        tell(message)
    await bus.shutdown(timeout=0.5)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", choices=("sqlite", "rabbitmq", "kafka"))
    parser.add_argument("url", metavar="FILE, AMQP_URI or BOOTSTRAP")
    parser.add_argument("name", metavar="PROJECTION, EXCHANGE or PREFIX")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--replay", metavar="MESSAGE_ID")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    sys.exit(asyncio.run({"sqlite": sqlite, "rabbitmq": rabbitmq, "kafka": kafka}[options.place](options)))


if __name__ == "__main__":
    main()
