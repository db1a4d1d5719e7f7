#!/usr/bin/python3
"""Drains a RabbitMQ queue with a client that is not ours (pika); one JSON object a line on stdout.

    read_amqp.py URI QUEUE [--until-idle SECONDS | --count N] [--timeout SECONDS] [--declare quorum|classic [--bind EXCHANGE=KEY]...]

A line: {"routing_key", "exchange", "message_id", "type", "content_type", "delivery_mode", "timestamp", "headers": {..}, "redelivered",
"body"}; a body that is not UTF-8 stands base64 in "body_b64"; absent properties are left out.

Everything is printed first and then acknowledged, so nothing is lost here; what was printed while its acknowledgement was
lost (the broker was restarted) comes again with "redelivered": true. Survives restarts of the broker. --declare makes the
durable queue, and --bind a durable topic exchange with a binding (before a kill -9: `scripts/broker rabbitmq sync`).
Exit codes: 0 as asked, 75 when --timeout came first, 69 refused. "ready" on stderr says that it consumes.
"""

import argparse
import datetime
import json
import ssl
import sys
import time
from base64 import b64encode
from hashlib import sha256

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, ProbableAccessDeniedError, ProbableAuthenticationError

PROPERTIES = ("message_id", "type", "content_type", "content_encoding", "delivery_mode", "timestamp", "correlation_id", "app_id",
              "priority", "expiration", "user_id")


def plain(value):
    """What JSON has no word for."""
    if isinstance(value, bytes):
        return {"b64": b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return str(value)


class Reader:
    def __init__(self, options):
        self.options = options
        self.count = 0
        self.last = time.monotonic()
        self.lines = []
        self.tag = None
        self.parameters = pika.URLParameters(options.uri)
        self.parameters.socket_timeout = 5
        self.parameters.blocked_connection_timeout = None
        if options.ca:
            context = ssl.create_default_context(cafile=options.ca)
            if options.certificate:
                context.load_cert_chain(options.certificate, options.key)
            self.parameters.ssl_options = pika.SSLOptions(context, self.parameters.host)

    def connect(self):
        connection = pika.BlockingConnection(self.parameters)
        channel = connection.channel()
        if self.options.declare:
            channel.queue_declare(self.options.queue, durable=True, arguments={"x-queue-type": self.options.declare})
            for binding in self.options.bind:
                exchange, _, key = binding.partition("=")
                channel.exchange_declare(exchange, "topic", durable=True)
                channel.queue_bind(self.options.queue, exchange, key)
        channel.basic_qos(prefetch_count=self.options.prefetch)
        channel.basic_consume(self.options.queue, self.take)
        print("ready", file=sys.stderr, flush=True)
        return connection, channel

    def take(self, _channel, method, properties, body):
        if self.options.count is not None and self.count >= self.options.count:
            return  # Not acknowledged: it goes back to the queue.
        line = {"routing_key": method.routing_key, "exchange": method.exchange}
        for name in PROPERTIES:
            value = getattr(properties, name)
            if value is not None:
                line[name] = value
        line["headers"] = properties.headers or {}
        line["redelivered"] = method.redelivered
        if self.options.sha256:
            line["sha256"] = sha256(body).hexdigest()
        elif not self.options.no_body:
            try:
                line["body"] = body.decode()
            except UnicodeDecodeError:
                line["body_b64"] = b64encode(body).decode()
        self.lines.append(json.dumps(line, default=plain, ensure_ascii=False))
        self.tag = method.delivery_tag
        self.count += 1

    def settle(self, channel):
        """Prints what came, then acknowledges it, all at once."""
        if not self.lines:
            return
        sys.stdout.write("\n".join(self.lines) + "\n")
        sys.stdout.flush()
        self.lines.clear()
        tag, self.tag = self.tag, None
        self.last = time.monotonic()
        channel.basic_ack(tag, multiple=True)

    def finished(self):
        if self.options.count is not None:
            return self.count >= self.options.count
        return time.monotonic() - self.last >= self.options.until_idle

    def run(self):
        deadline = time.monotonic() + self.options.timeout
        while True:
            connection = None
            try:
                connection, channel = self.connect()
                self.last = time.monotonic()
                while not self.finished() and time.monotonic() < deadline:
                    connection.process_data_events(time_limit=0.02 if self.lines else 0.1)
                    self.settle(channel)
                connection.close()
                return 0 if self.finished() else 75
            except (ChannelClosedByBroker, ProbableAccessDeniedError, ProbableAuthenticationError) as refused:
                # While a broker starts, a queue may be missing for a moment; a reader that may declare goes on trying.
                if getattr(refused, "reply_code", 403) in (403, 406):
                    print(f"read_amqp: {refused!r}", file=sys.stderr)
                    return 69
            except (AMQPError, OSError):
                pass
            self.lines.clear()  # Not printed, not acknowledged: it comes again.
            if connection is not None and connection.is_open:
                connection.close()
            if time.monotonic() >= deadline:
                return 75
            time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri")
    parser.add_argument("queue")
    parser.add_argument("--until-idle", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--count", type=int)
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--prefetch", type=int, default=2000)
    parser.add_argument("--no-body", action="store_true")
    parser.add_argument("--sha256", action="store_true", help="instead of the bodies, their SHA-256")
    parser.add_argument("--declare", choices=("quorum", "classic"))
    parser.add_argument("--bind", action="append", default=[], metavar="EXCHANGE=KEY")
    parser.add_argument("--ca", help="for amqps: the authority's certificate")
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    sys.exit(Reader(parser.parse_args()).run())


if __name__ == "__main__":
    main()
