#!/usr/bin/env python3
"""Reads a Kafka topic back with a client that is not ours; one JSON object a line on stdout.

    read_kafka.py BOOTSTRAP TOPIC [--from-beginning] [--until-end | --until-idle SECONDS | --count N] [--timeout SECONDS]

A line: {"partition", "offset", "timestamp", "key", "headers": {..}, "value"}. Bytes that are not UTF-8 stand base64 in "key_b64",
"value_b64", or {"b64": ..} as a header; a header given more than once is a list. A tombstone has "value": null.

--until-end (what is done when nothing is said) stops at what was the end of every partition; --until-idle when nothing came
for so long; --count after N. Exit codes: 0 as asked, 75 when --timeout came first (what was read is printed), 69 a fatal error.
Survives restarts of the broker. "ready" on stderr says that every partition is assigned: what is sent from then on is read.
Runs with .tools/eventsource/bin/python (scripts/setup), by itself when it is there.
"""

import argparse
import os
import sys
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

VENV = Path(__file__).resolve().parents[2] / ".tools" / "eventsource"
if Path(sys.prefix) != VENV and (VENV / "bin" / "python").exists():
    os.execv(VENV / "bin" / "python", [str(VENV / "bin" / "python"), __file__, *sys.argv[1:]])

import confluent_kafka as kafka  # noqa: E402
import orjson  # noqa: E402

BATCH = 2000


def text(data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def put(line, name, data):
    decoded = data if data is None else text(data)
    if data is not None and decoded is None:
        line[name + "_b64"] = b64encode(data).decode()
    else:
        line[name] = decoded


def headers(pairs):
    found = {}
    for name, data in pairs or ():
        value = None if data is None else text(data)
        if data is not None and value is None:
            value = {"b64": b64encode(data).decode()}
        if name in found:
            earlier = found[name]
            value = [*earlier, value] if isinstance(earlier, list) else [earlier, value]
        found[name] = value
    return found


def as_line(message, options):
    line = {"partition": message.partition(), "offset": message.offset(), "timestamp": message.timestamp()[1]}
    put(line, "key", message.key())
    line["headers"] = headers(message.headers())
    value = message.value()
    if options.sha256:
        line["sha256"] = None if value is None else sha256(value).hexdigest()
    elif not options.no_value:
        put(line, "value", value)
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def assign(consumer, topic, offset, deadline):
    """Waits for the topic, so that a reader may be started first."""
    while True:
        try:
            found = consumer.list_topics(topic, timeout=2).topics[topic]
            if not found.error and found.partitions:
                break
        except kafka.KafkaException:
            pass
        if time.monotonic() > deadline:
            sys.exit(f"read_kafka: topic {topic} is not there")
        time.sleep(0.1)
    parts = [kafka.TopicPartition(topic, number, offset) for number in found.partitions]
    if offset == kafka.OFFSET_END:
        for part in parts:  # A fixed place: "end" would be looked up later, behind what is sent meanwhile.
            part.offset = consumer.get_watermark_offsets(part, timeout=10)[1]
    consumer.assign(parts)
    print("ready", file=sys.stderr, flush=True)
    return set(found.partitions)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bootstrap")
    parser.add_argument("topic")
    parser.add_argument("--from-beginning", action="store_true")
    parser.add_argument("--until-end", action="store_true")
    parser.add_argument("--until-idle", type=float, metavar="SECONDS")
    parser.add_argument("--count", type=int)
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--committed", action="store_true", help="only what transactions committed")
    parser.add_argument("--no-value", action="store_true", help="leave the values out")
    parser.add_argument("--sha256", action="store_true", help="instead of the values, their SHA-256")
    parser.add_argument("-X", dest="extra", action="append", default=[], metavar="K=V", help="a librdkafka property")
    options = parser.parse_args()

    fatal = []
    consumer = kafka.Consumer({
        "bootstrap.servers": options.bootstrap,
        "group.id": f"read-kafka-{os.getpid()}",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed" if options.committed else "read_uncommitted",
        "reconnect.backoff.max.ms": 500,
        "fetch.wait.max.ms": 50,
        "queued.max.messages.kbytes": 131072,
        "log_level": 2,
        "error_cb": lambda error: fatal.append(error) if error.fatal() else None,
        **dict(pair.split("=", 1) for pair in options.extra),
    })
    deadline = time.monotonic() + options.timeout
    start = kafka.OFFSET_BEGINNING if options.from_beginning else kafka.OFFSET_END
    left = assign(consumer, options.topic, start, deadline)
    until_end = options.until_end or (options.until_idle is None and options.count is None)
    out, count, last = sys.stdout.buffer, 0, time.monotonic()
    code = 0
    while True:
        now = time.monotonic()
        if fatal:
            print(f"read_kafka: {fatal[0]}", file=sys.stderr)
            code = 69
            break
        if (options.count is not None and count >= options.count) or (until_end and not left):
            break
        if options.until_idle is not None and now - last >= options.until_idle:
            break
        if now >= deadline:
            code = 75
            break
        batch = []
        for message in consumer.consume(BATCH, timeout=0.05):
            error = message.error()
            if error is None:
                batch.append(as_line(message, options))
            elif error.code() == kafka.KafkaError._PARTITION_EOF:
                left.discard(message.partition())
        if batch:
            if options.count is not None:
                batch = batch[: options.count - count]
            out.write(b"".join(batch))
            out.flush()
            count += len(batch)
            last = time.monotonic()
    # close() would wait for things that do not matter here.
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
