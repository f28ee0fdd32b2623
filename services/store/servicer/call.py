"""What every part of the servicer says of a call."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from services.chassis.errors import invalid_field
from services.store.domain import Limits

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


def check_count(field: str, count: int, limits: Limits) -> None:
    """Raises InvalidArgument for a batch without items, or with too many."""
    if not 1 <= count <= limits.batch_items:
        raise invalid_field(field, f"must hold 1 to {limits.batch_items} items", item_count=str(count))
