#!/usr/bin/env python3
"""Aggregates of the real eventsource-py with its own snapshot store, as an application has them.

    eventsource_snapshots.py write FILE AGGREGATES EVENTS     more events for so many new aggregates; makes FILE when it is not there
    eventsource_snapshots.py read FILE                        loads every aggregate with and without its snapshot
    eventsource_snapshots.py fast FILE                        loads every aggregate with its snapshot alone
    eventsource_snapshots.py grow FILE EVENTS                 loads every aggregate with its snapshot, and appends so many deposits

`read` and `fast` print a line each: {"aggregate_id", "version", "snapshot" (its version, null when the library does not take it), "state", "same"}.
"""

import asyncio
import json
import logging
import sqlite3
import sys
import uuid

sys.dont_write_bytecode = True

# First our own: it changes the interpreter.
import eventsource_events  # noqa: E402, F401, I001
from eventsource import AggregateRepository, DeclarativeAggregate, DomainEvent, SQLiteEventStore, register_event  # noqa: E402
from eventsource.adapters.sqlite.snapshots import SQLiteSnapshotStore  # noqa: E402
from eventsource.application.aggregates.snapshotting import read_valid_snapshot  # noqa: E402
from eventsource import handles  # noqa: E402
from pydantic import BaseModel  # noqa: E402

logging.disable(logging.CRITICAL)


@register_event
class AccountOpened(DomainEvent):
    aggregate_type: str = "Account"
    owner: str


@register_event
class Deposited(DomainEvent):
    aggregate_type: str = "Account"
    cents: int


@register_event
class OwnerRenamed(DomainEvent):
    aggregate_type: str = "Account"
    owner: str


class AccountState(BaseModel):
    account_id: uuid.UUID
    owner: str
    cents: int = 0
    deposits: int = 0


class Account(DeclarativeAggregate[AccountState]):
    aggregate_type = "Account"
    schema_version = 3

    @handles(AccountOpened)
    def _opened(self, event):
        self._state = AccountState(account_id=self.aggregate_id, owner=event.owner)

    @handles(Deposited)
    def _deposited(self, event):
        update = {"cents": self._state.cents + event.cents, "deposits": self._state.deposits + 1}
        self._state = self._state.model_copy(update=update)

    @handles(OwnerRenamed)
    def _renamed(self, event):
        self._state = self._state.model_copy(update={"owner": event.owner})


def repositories(file):
    store = SQLiteEventStore(file)
    plain = AggregateRepository(store, Account, enable_tracing=False)
    return store, plain, AggregateRepository(store, Account, snapshot_store=SQLiteSnapshotStore(file), enable_tracing=False)


async def write(file, aggregates, events):
    store, plain, _ = repositories(file)
    for number in range(aggregates):
        account = Account(uuid.uuid4())
        common = {"aggregate_id": account.aggregate_id}
        for version in range(1, events + 1):
            common["aggregate_version"] = version
            if version == 1:
                event = AccountOpened(**common, owner=f"Žofia {number} \"quoted\" 日本")
            elif version % 7 == 0:
                event = OwnerRenamed(**common, owner=f"Jürg {version}")
            else:
                event = Deposited(**common, cents=9_007_199_254_740 + version)
            account.apply_event(event)
        await plain.save(account)
    await store.close()


def aggregates_of(file):
    with sqlite3.connect(file) as connection:
        return [row[0] for row in connection.execute("SELECT DISTINCT aggregate_id FROM events ORDER BY aggregate_id")]


async def fast(file, events):
    store, _, fast = repositories(file)
    for text in aggregates_of(file):
        account = await fast.load(uuid.UUID(text))
        for _ in range(events):
            common = {"aggregate_id": account.aggregate_id, "aggregate_version": account.version + 1}
            account.apply_event(Deposited(**common, cents=1))
        if events:
            await fast.save(account)
        line = {"aggregate_id": text, "version": account.version, "state": account.state.model_dump(mode="json")}
        print(json.dumps(line, ensure_ascii=False))
    await store.close()


async def read(file):
    ids = aggregates_of(file)
    store, plain, fast = repositories(file)
    for text in ids:
        aggregate_id = uuid.UUID(text)
        taken = await read_valid_snapshot(SQLiteSnapshotStore(file), aggregate_id, "Account", Account)
        slowly, quickly = await plain.load(aggregate_id), await fast.load(aggregate_id)
        same = (slowly.version, slowly.state) == (quickly.version, quickly.state)
        if taken is not None:
            same = same and AccountState.model_validate(taken.state) is not None
        line = {"aggregate_id": text, "version": quickly.version, "snapshot": taken and taken.version, "same": same}
        print(json.dumps({**line, "state": quickly.state.model_dump(mode="json")}, ensure_ascii=False))
    await store.close()


match sys.argv[1:]:
    case ["write", file, aggregates, events]:
        asyncio.run(write(file, int(aggregates), int(events)))
    case ["grow", file, events]:
        asyncio.run(fast(file, int(events)))
    case ["fast", file]:
        asyncio.run(fast(file, 0))
    case ["read", file]:
        asyncio.run(read(file))
