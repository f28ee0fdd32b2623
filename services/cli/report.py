"""The tables and sentences of results; pure, from outcomes to what rich can print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.table import Table

from omninode.bridge.stamping.v1 import stamping_pb2
from services.cli import console
from services.cli.failure import shown
from services.cli.stamping import Placement, Stamped
from services.cli.validation import Validated, Verdict

ABSENT = "-"


def by_type(stamped: Sequence[Stamped]) -> Table:
    """Files, bytes and kinds of outcome for each content type, the most files first."""
    table = table_of("content type", "files", "bytes", "new", "embedded", "detached", numbers_from=1)
    types = Counter(item.stamp.content_type for item in stamped)
    for content_type, _count in types.most_common():
        table.add_row(
            shown(content_type), *_figures([item for item in stamped if item.stamp.content_type == content_type])
        )
    if len(types) > 1:
        table.add_section()
        table.add_row("all", *_figures(stamped))
    return table


def _figures(stamped: Sequence[Stamped]) -> Iterator[str]:
    yield f"{len(stamped):,}"
    yield readable_bytes(sum(item.file.size for item in stamped))
    yield f"{sum(item.created for item in stamped):,}"
    yield f"{sum(item.placement != Placement.DETACHED for item in stamped):,}"
    yield f"{sum(item.placement == Placement.DETACHED for item in stamped):,}"


def stamps(listed: Sequence[stamping_pb2.Stamp]) -> Table:
    """A ledger's stamps, one a row."""
    table = table_of("digest", "path", "content type", "bytes", "version", "created", "state")
    for stamp in listed:
        table.add_row(
            stamp.digest,
            shown(stamp.file_path),
            shown(stamp.content_type),
            readable_bytes(stamp.size_bytes),
            str(stamp.version),
            moment(stamp.create_time),
            "revoked" if stamp.HasField("revoke_time") else "active",
        )
    table.columns[0].no_wrap = True
    table.columns[1].overflow = "fold"
    return table


def revocation(answer: stamping_pb2.RevokeStampResponse) -> str:
    """What became of a claim, as a sentence."""
    if not answer.HasField("stamp"):
        return "noted: that request has not come; it is refused when it comes"
    stamp = f"stamp {answer.stamp.digest}, version {answer.stamp.version}"
    if answer.revoked:
        return f"revoked: {stamp}"
    if answer.remaining_claim_count:
        return f"released: {stamp}; it stands, by {counted(answer.remaining_claim_count, 'claim')}"
    return f"released before: {stamp}; nobody claims it any more"


def event(item: stamping_pb2.StampEvent) -> str:
    """What happened to a stamp, as a line."""
    kind = stamping_pb2.StampEventKind.Name(item.kind).removeprefix("STAMP_EVENT_KIND_").lower()
    parts = [moment(item.occur_time, "milliseconds"), kind, item.namespace]
    if item.HasField("stamp"):
        parts += [item.stamp.digest, f"v{item.stamp.version}", item.stamp.file_path or "-", item.reason]
    else:
        parts += [f"{item.stamped_count:,} stamped, {item.refused_count:,} refused"]
    return "  ".join(filter(None, parts))


def fields(record: Mapping[str, object]) -> Table:
    """One record, a field a row; those of a record in it are named with a dot."""
    table = table_of("field", "value")
    for name, value in _flat(record):
        table.add_row(shown(name), console.readable(value))
    table.columns[1].overflow = "fold"
    return table


def _flat(record: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}.{inner}", item) for inner, item in _flat(value))
        else:
            yield name, value


def findings(validated: Validated) -> Iterator[str]:
    """A line for each thing in the file that its owner should know of; none for a file that is in order."""
    path = validated.file.path
    for stamp in validated.response.stamps:
        if not stamp.valid:
            digests = (
                f"declares {stamp.found_digest or 'no digest'}, the content is {stamp.current_digest or 'not text'}"
            )
            yield f"{path}:{stamp.line}: invalid: {stamp.invalid_reason} ({digests})"
    for quoted in validated.response.quoted:
        yield f"{path}:{quoted.line}: quoted: {quoted.reason}"
    for foreign in validated.response.foreign:
        yield f"{path}:{foreign.line}: foreign: a block of another tool, not judged"
    if validated.response.truncated:
        yield f"{path}: there is more of this kind than the node reports"
    if validated.verdict == Verdict.UNSTAMPED:
        yield f"{path}: no stamp"


def verdicts(validated: Sequence[Validated]) -> str:
    """How many files came to which verdict."""
    count = Counter(item.verdict for item in validated)
    unknown = sum(item.verdict == Verdict.VALID and not item.response.HasField("ledger_stamp") for item in validated)
    return ", ".join(
        (
            f"{count[Verdict.VALID]:,} valid" + (f" ({unknown:,} of them unknown to the ledger)" if unknown else ""),
            f"{count[Verdict.INVALID]:,} invalid",
            f"{count[Verdict.RECORDED]:,} stamped detached",
            f"{count[Verdict.UNSTAMPED]:,} without a stamp",
        )
    )


def table_of(*headings: str, numbers_from: int | None = None) -> Table:
    """An empty table; the columns from `numbers_from` on hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if numbers_from is not None and index >= numbers_from else "left")
    return table


def folding(table: Table, *columns: int) -> Table:
    """The table with those columns broken into lines where a terminal is too narrow, and not cut off."""
    for column in columns:
        table.columns[column].overflow = "fold"
    return table


def text(value: str) -> str:
    """A text as a table shows it."""
    return shown(value) or ABSENT


def span(time: Duration) -> str:
    """A length of time in the unit that reads best: `0.35 s`, `1.5 h`, `7 d`."""
    seconds = time.ToNanoseconds() / 1e9
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def moment(time: Timestamp, timespec: str = "seconds") -> str:
    """A moment in UTC, such as `2026-03-01 12:00:00Z`."""
    return f"{time.ToDatetime().isoformat(' ', timespec)}Z"


def counted(number: int, what: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def readable_bytes(size: float) -> str:
    """A number of bytes in the unit that reads best: `512 B`, `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
