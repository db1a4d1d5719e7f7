"""The few Kafka admin requests that tests need, spoken by hand: 40 ms a call, where a Java tool takes 600.

Only request versions before the flexible encodings (KIP-482) are used; Kafka 4 still speaks all of these.
"""

import socket
import struct

from process import Failed

METADATA, CREATE_TOPICS, DELETE_TOPICS, CREATE_ACLS, DELETE_ACLS = 3, 19, 20, 30, 31
CREATE_PARTITIONS, ALTER_CONFIGS = 37, 44
TOPIC, CLUSTER, ANY, LITERAL = 2, 4, 1, 3
OPERATIONS = {"all": 2, "read": 3, "write": 4, "create": 5, "delete": 6, "alter": 7, "describe": 8, "cluster-action": 9,
              "describe-configs": 10, "alter-configs": 11, "idempotent-write": 12}
PERMISSIONS = {"deny": 2, "allow": 3}
ERRORS = {0: "none", 3: "unknown topic or partition", 5: "leader not available", 7: "request timed out", 17: "invalid topic",
          29: "topic authorization failed", 31: "cluster authorization failed", 36: "topic already exists", 37: "invalid partitions",
          38: "invalid replication factor", 40: "invalid config", 42: "invalid request", 44: "policy violation",
          54: "security disabled (start the broker with --acl)"}


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        (value,) = struct.unpack_from(">" + form, self.data, self.at)
        self.at += struct.calcsize(">" + form)
        return value

    def int8(self):
        return self.take("b")

    def int16(self):
        return self.take("h")

    def int32(self):
        return self.take("i")

    def string(self):
        length = self.int16()
        if length < 0:
            return None
        value = self.data[self.at : self.at + length].decode()
        self.at += length
        return value

    def array(self, item):
        return [item() for _ in range(self.int32())]


def string(value):
    if value is None:
        return struct.pack(">h", -1)
    data = value.encode()
    return struct.pack(">h", len(data)) + data


def array(items):
    return struct.pack(">i", len(items)) + b"".join(items)


def ask(port, api, version, body, seconds=15.0):
    """One request on a connection of its own; the answer behind its correlation id."""
    payload = struct.pack(">hhi", api, version, 1) + string("outboxd-broker") + body
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(struct.pack(">i", len(payload)) + payload)
        (size,) = struct.unpack(">i", read(connection, 4))
        return Reader(read(connection, size)[4:])


def read(connection, size):
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionError("the broker closed the connection")
        data += chunk
    return data


def metadata(port):
    """(brokers, {topic: [leader of each partition]}); a leader of -1 is none."""
    answer = ask(port, METADATA, 4, struct.pack(">ib", -1, 0), 2.0)
    answer.int32()
    brokers = answer.array(lambda: (answer.int32(), answer.string(), answer.int32(), answer.string()))
    answer.string(), answer.int32()

    def partition():
        error, _, leader = answer.int16(), answer.int32(), answer.int32()
        answer.array(answer.int32), answer.array(answer.int32)
        return leader if error == 0 else -1

    def topic():
        answer.int16()
        name = answer.string()
        answer.int8()
        return name, answer.array(partition)

    return brokers, dict(answer.array(topic))


def refuse(error, message, what):
    if error:
        raise Failed(f"{what}: {ERRORS.get(error, f'error {error}')}" + (f": {message}" if message else ""))


def create_topic(port, name, partitions, configs, replicas=1):
    pairs = [string(key) + string(value) for key, value in configs.items()]
    topic = string(name) + struct.pack(">ih", partitions, replicas) + array([]) + array(pairs)
    answer = ask(port, CREATE_TOPICS, 4, array([topic]) + struct.pack(">ib", 10_000, 0))
    answer.int32(), answer.int32(), answer.string()
    refuse(answer.int16(), answer.string(), f"create topic {name}")


def delete_topic(port, name):
    answer = ask(port, DELETE_TOPICS, 3, array([string(name)]) + struct.pack(">i", 10_000))
    answer.int32(), answer.int32(), answer.string()
    refuse(answer.int16(), None, f"delete topic {name}")


def add_partitions(port, name, count):
    body = array([string(name) + struct.pack(">ii", count, -1)]) + struct.pack(">ib", 10_000, 0)
    answer = ask(port, CREATE_PARTITIONS, 1, body)
    answer.int32(), answer.int32(), answer.string()
    refuse(answer.int16(), answer.string(), f"add partitions to {name}")


def alter_topic(port, name, configs):
    """Sets each key, or removes it where the value is None."""
    pairs = [string(key) + struct.pack(">b", 1 if value is None else 0) + string(value) for key, value in configs.items()]
    body = array([struct.pack(">b", TOPIC) + string(name) + array(pairs)]) + struct.pack(">b", 0)
    answer = ask(port, ALTER_CONFIGS, 0, body)
    answer.int32(), answer.int32()
    refuse(answer.int16(), answer.string(), f"alter topic {name}")


def resource(topic):
    return (CLUSTER, "kafka-cluster") if topic is None else (TOPIC, topic)


def create_acl(port, permission, principal, operation, topic):
    kind, name = resource(topic)
    entry = struct.pack(">b", kind) + string(name) + struct.pack(">b", LITERAL) + string(principal) + string("*")
    entry += struct.pack(">bb", OPERATIONS[operation], PERMISSIONS[permission])
    answer = ask(port, CREATE_ACLS, 1, array([entry]))
    answer.int32(), answer.int32()
    refuse(answer.int16(), answer.string(), f"{permission} {principal}")


def delete_acls(port, topic):
    """Removes every entry on one topic (None: on every topic); returns how many."""
    entry = struct.pack(">b", ANY if topic is None else TOPIC) + string(topic) + struct.pack(">b", ANY) + string(None) + string(None)
    answer = ask(port, DELETE_ACLS, 1, array([entry + struct.pack(">bb", ANY, ANY)]))
    answer.int32(), answer.int32()
    refuse(answer.int16(), answer.string(), "remove ACLs")
    return answer.int32()
