"""The events that eventsource_write.py writes and eventsource_consume.py takes: an application's own module, as eventsource-py wants it.

Imported first by both; also moves the script into .tools/eventsource (scripts/setup), where the library is.
"""

import os
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parents[2] / ".tools" / "eventsource"
if Path(sys.prefix) != VENV and (VENV / "bin" / "python").exists():
    os.execv(VENV / "bin" / "python", [str(VENV / "bin" / "python"), *sys.argv])

from decimal import Decimal  # noqa: E402
from uuid import UUID, uuid4  # noqa: E402

from eventsource import DomainEvent, register_event  # noqa: E402


@register_event
class OrderPlaced(DomainEvent):
    aggregate_type: str = "Order"
    customer: str
    note: str | None = None


@register_event
class OrderLineAdded(DomainEvent):
    aggregate_type: str = "Order"
    sku: str
    quantity: int
    price: Decimal
    weight: float


@register_event
class OrderShipped(DomainEvent):
    aggregate_type: str = "Order"
    carrier: str
    tracking: UUID


@register_event
class StockReserved(DomainEvent):
    aggregate_type: str = "StockItem"
    quantity: int
    reference: int  # beyond 2^53: a float on the way would show


ALL = (OrderPlaced, OrderLineAdded, OrderShipped, StockReserved)


def make(aggregate_number, aggregate_id, version, tenant_id):
    """The version-th event of an aggregate; every fourth aggregate is a stock item."""
    common = {"aggregate_id": aggregate_id, "aggregate_version": version, "tenant_id": tenant_id, "actor_id": "svc:checkout"}
    if aggregate_number % 4 == 3:
        return StockReserved(**common, quantity=version, reference=9_007_199_254_740_993 + version, metadata={"shelf": "Ä-7"})
    if version == 1:
        return OrderPlaced(**common, customer=f"Žofia {aggregate_number}", note='quote " backslash \\ tab \t 日本')
    if version % 5 == 0:
        return OrderShipped(**common, carrier="Österreichische Post", tracking=uuid4(), causation_id=uuid4())
    return OrderLineAdded(**common, sku=f"sku-{version}", quantity=version, price=Decimal("19.90"), weight=0.1 + version)
