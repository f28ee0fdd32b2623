"""What the options of `omnibridge aggregates` ask for, as the contract's messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from omninode.bridge.reducer.v1 import aggregation_pb2 as pb
from services.cli.aggregate_report import STRATEGIES, Strategy
from services.cli.option import duration, name

_AS_THE_NODE_SAYS = "as the node says"
_STRATEGIES = ", ".join(STRATEGIES)

SessionName = Annotated[
    str, typer.Argument(metavar="SESSION", parser=name, help="The session's name.", show_default=False)
]
Strategies = Annotated[
    list[Strategy] | None,
    typer.Option(
        "--strategy",
        metavar="STRATEGY",
        help=f"Only panes of this strategy; may be given again: {_STRATEGIES}.",
        show_default=False,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", parser=name, metavar="NAME", help="Only this namespace.", show_default=False),
]
Key = Annotated[
    str | None, typer.Option("--key", parser=name, metavar="KEY", help="Only this key.", show_default=False)
]
FinalOnly = Annotated[bool, typer.Option("--final-only", help="Only panes that will not change any more.")]

FedSession = Annotated[
    str, typer.Option("--session", metavar="NAME", parser=name, help="The session.", show_default=False)
]
GroupedBy = Annotated[
    list[Strategy] | None,
    typer.Option(
        "--strategy",
        metavar="STRATEGY",
        help=f"By what to put records together; may be given again: {_STRATEGIES}.",
        show_default=_AS_THE_NODE_SAYS,
    ),
]
Window = Annotated[
    timedelta | None,
    typer.Option(
        "--window",
        parser=duration,
        metavar="TIME",
        help="The windows' length, such as 5s.",
        show_default=_AS_THE_NODE_SAYS,
    ),
]
Hop = Annotated[
    timedelta | None,
    typer.Option(
        "--hop",
        parser=duration,
        metavar="TIME",
        help="Begin a window each TIME, so that they overlap; needs --window.",
        show_default=False,
    ),
]
Gap = Annotated[
    timedelta | None,
    typer.Option(
        "--gap",
        parser=duration,
        metavar="TIME",
        help="End windows by a silence of TIME, instead of by a length.",
        show_default=False,
    ),
]
Delay = Annotated[
    timedelta | None,
    typer.Option(
        "--delay",
        parser=duration,
        metavar="TIME",
        help="How much older than the newest a record may be and still be on time.",
        show_default=_AS_THE_NODE_SAYS,
    ),
]
Lateness = Annotated[
    timedelta | None,
    typer.Option(
        "--lateness",
        parser=duration,
        metavar="TIME",
        help="How long after its window's end a record still counts.",
        show_default=_AS_THE_NODE_SAYS,
    ),
]
Early = Annotated[
    timedelta | None,
    typer.Option(
        "--early",
        parser=duration,
        metavar="TIME",
        help="How often to be answered the panes of open windows; 0 is never.",
        show_default=_AS_THE_NODE_SAYS,
    ),
]
ByNamespace = Annotated[bool, typer.Option("--by-namespace", help="Keep all panes apart by namespace.")]
CustomFold = Annotated[
    str,
    typer.Option(
        "--custom-fold", parser=name, metavar="NAME", help="The fold of the strategy custom.", show_default=False
    ),
]


def pane_filter(
    strategies: Sequence[Strategy] | None, namespace: str | None, key: str | None, final_only: bool
) -> pb.PaneFilter:
    """The filter of panes."""
    return pb.PaneFilter(
        strategies=[STRATEGIES[each] for each in strategies or ()], namespace=namespace, key=key, final_only=final_only
    )


def config(
    *,
    strategies: Sequence[Strategy] | None,
    window: timedelta | None,
    hop: timedelta | None,
    gap: timedelta | None,
    delay: timedelta | None,
    lateness: timedelta | None,
    early: timedelta | None,
    by_namespace: bool,
    custom_fold: str,
) -> pb.AggregationConfig | None:
    """The configuration; None where no option says anything of it. Raises BadParameter for windows that exclude each other."""
    message = pb.AggregationConfig(
        strategies=[STRATEGIES[each] for each in strategies or ()],
        by_namespace=by_namespace or None,
        watermark_delay=_duration(delay),
        allowed_lateness=_duration(lateness),
        early_period=_duration(early),
        custom_fold=custom_fold,
    )
    if gap is not None:
        if window is not None or hop is not None:
            raise typer.BadParameter("--gap excludes --window and --hop")
        message.session_window.CopyFrom(pb.SessionWindow(gap=_duration(gap)))
    elif hop is not None:
        if window is None:
            raise typer.BadParameter("--hop needs --window")
        message.hopping.CopyFrom(pb.HoppingWindow(size=_duration(window), hop=_duration(hop)))
    elif window is not None:
        message.tumbling.CopyFrom(pb.TumblingWindow(size=_duration(window)))
    return message if message.ListFields() else None


def _duration(time: timedelta | None) -> Duration | None:
    if time is None:
        return None
    message = Duration()
    message.FromTimedelta(time)
    return message
