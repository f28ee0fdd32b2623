"""What readers ask for: sessions by name, panes by filters, and the feed's view of them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.chassis.boundary import WITHOUT_NUL, Boundary, Name
from services.reducer.aggregation.config import Strategy
from services.reducer.aggregation.message import to_pane
from services.reducer.aggregation.pane import CellId, Pane
from services.reducer.aggregation.table import PaneRow

_Namespace = Annotated[str, Field(max_length=255, pattern=WITHOUT_NUL)]
_Key = Annotated[str, Field(max_length=440, pattern=WITHOUT_NUL)]


class AskedSession(Boundary):
    """A session by its name."""

    session: Name


class AskedFilter(Boundary):
    """Which panes; what is left out selects all."""

    strategies: Annotated[tuple[Strategy, ...], Field(max_length=len(Strategy))]
    namespace: _Namespace | None
    key: _Key | None
    final_only: bool

    def selects_cell(self, cell: CellId) -> bool:
        """Whether a pane of this cell may be among them."""
        strategy, _, _, namespace, key = cell
        return (
            (not self.strategies or strategy in self.strategies)
            and (self.namespace is None or namespace == self.namespace)
            and (self.key is None or key == self.key)
        )

    def selects(self, pane: Pane) -> bool:
        """Whether the pane is among them."""
        return (pane.final or not self.final_only) and self.selects_cell(pane.cell)


class PaneView(AskedSession):
    """The panes of a session that a filter selects."""

    filter: AskedFilter

    @property
    def filters(self) -> Mapping[str, object]:
        return {"feed": "aggregates", **self.model_dump(mode="json")}

    @property
    def partitions(self) -> None:
        return None

    @property
    def response(self) -> type[pb.WatchAggregatesResponse]:
        return pb.WatchAggregatesResponse

    def items(self, rows: Sequence[PaneRow]) -> Iterator[pb.Pane]:
        for row in rows:
            if row.pane is not None and self.filter.selects(row.pane):
                yield to_pane(row.pane)


def to_view(session: str, message: pb.PaneFilter) -> PaneView:
    """What a request asks for. Raises ValidationError, which names the fields as the request does."""
    return PaneView.model_validate(
        {
            "session": session,
            "filter": {
                "strategies": sorted(set(message.strategies)),
                "namespace": message.namespace if message.HasField("namespace") else None,
                "key": message.key if message.HasField("key") else None,
                "final_only": message.final_only,
            },
        }
    )
