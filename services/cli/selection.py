"""Which projections a verb is about, and what it counts them by: the options, and what they come to in the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from omninode.bridge.store.v1 import store_pb2
from services.chassis.timestamp import fill
from services.cli.option import moment, name

_GROUPS = {
    "tag": store_pb2.PROJECTION_GROUP_TAG,
    "namespace": store_pb2.PROJECTION_GROUP_NAMESPACE,
    "collection": store_pb2.PROJECTION_GROUP_COLLECTION,
}


@dataclass(frozen=True, slots=True)
class Index:
    """An indexed field and the value that it must have."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Group:
    """What to count by."""

    heading: str
    kind: store_pb2.ProjectionGroup.ValueType
    index: str = ""


def _index(text: str) -> Index:
    field, equals, value = name(text).partition("=")
    if not (field and equals):
        raise typer.BadParameter("an indexed field is written as NAME=VALUE")
    return Index(field, value)


def _group(text: str) -> Group:
    if text in _GROUPS:
        return Group(text, _GROUPS[text])
    kind, _, field = name(text).partition(":")
    if kind != "index" or not field:
        raise typer.BadParameter("it is one of: tag, namespace, collection, index:NAME")
    return Group(field, store_pb2.PROJECTION_GROUP_INDEX, field)


Namespace = Annotated[
    str | None,
    typer.Option("--namespace", parser=name, metavar="TEXT", help="Only of this namespace.", show_default=False),
]
Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag", parser=name, metavar="TAG", help="Only what has this tag now; may be given again.", show_default=False
    ),
]
Indices = Annotated[
    list[Index] | None,
    typer.Option(
        "--index",
        parser=_index,
        metavar="NAME=VALUE",
        help="Only what has this indexed field; given again, all of them.",
        show_default=False,
    ),
]
UpdatedAfter = Annotated[
    datetime | None,
    typer.Option("--updated-after", parser=moment, metavar="TIME", help="Only what was last changed then or later."),
]
UpdatedBefore = Annotated[
    datetime | None,
    typer.Option("--updated-before", parser=moment, metavar="TIME", help="Only what was last changed earlier."),
]
By = Annotated[
    Group | None,
    typer.Option(
        "--by",
        parser=_group,
        metavar="tag|namespace|collection|index:NAME",
        help="Count each of these by itself.",
        show_default=False,
    ),
]


def to_filter(
    collection: str,
    namespace: str | None,
    tags: Sequence[str] | None,
    indices: Sequence[Index] | None,
    times: tuple[datetime | None, datetime | None, datetime | None, datetime | None],
) -> store_pb2.ProjectionFilter:
    """The filter of the options; `times` are those that it was created after and before, and updated after and before."""
    wanted = store_pb2.ProjectionFilter(collection=collection, namespace=namespace, tags=tags or ())
    for index in indices or ():
        if wanted.indices.get(index.name, index.value) != index.value:
            raise typer.BadParameter(f"--index {index.name}: a field has one value")
        wanted.indices[index.name] = index.value
    fields = (wanted.created_after, wanted.created_before, wanted.updated_after, wanted.updated_before)
    for field, bound in zip(fields, times, strict=True):
        if bound:
            fill(field, bound)
    return wanted
