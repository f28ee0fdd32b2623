"""One measured figure, as it is printed and as it is written down."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results.jsonl"


@dataclass(frozen=True, slots=True)
class Figure:
    """A benchmark's outcome: the median of its rounds beside its peer's median, both taken in turn in one run."""

    name: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float
    bar: float | None = None
    """The ratio (or, where `bar_on_value`, the value) that is asked for; None where the figure is only stated."""
    bar_on_value: bool = False
    ceiling: float | None = None
    """The value that is asked for at most, where less is better."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Further figures of the same rounds."""

    @property
    def reached(self) -> bool:
        """Whether the bar was reached, and the ceiling kept."""
        if self.ceiling is not None and self.value > self.ceiling:
            return False
        return self.bar is None or (self.value if self.bar_on_value else self.ratio) >= self.bar


def machine() -> str:
    """The machine in a few words: cores, memory, processor, Python."""
    memory = round(_meminfo() / 1024**2)
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{_cores()} cores of {_processor()}, {memory} GiB, {system}"


def write(figures: Sequence[Figure]) -> None:
    """Appends the figures to results.jsonl, an object a line."""
    described = {"machine": machine(), "date": date.today().isoformat()}  # noqa: DTZ011 (the operator's own day)
    with RESULTS.open("a") as results:
        for figure in figures:
            line = {
                "name": figure.name,
                "value": _rounded(figure.value),
                "unit": figure.unit,
                "peer": figure.peer,
                "peer_value": _rounded(figure.peer_value),
                "ratio": _rounded(figure.ratio),
                **described,
                "bar": figure.bar,
                "ceiling": figure.ceiling,
                "beside": {name: _rounded(value) for name, value in figure.beside.items()},
            }
            results.write(json.dumps(line) + "\n")


def show(figures: Sequence[Figure], console: Console) -> None:
    """Prints the figures as a table."""
    table = Table(title=machine(), title_justify="left")
    for heading in ("benchmark", "value", "unit", "peer", "peer's value", "ratio", "bar", "beside"):
        table.add_column(heading, overflow="fold")
    for figure in figures:
        beside = "\n".join(f"{name}: {value:,.4g}" for name, value in figure.beside.items())
        table.add_row(
            figure.name,
            f"{figure.value:,.4g}",
            figure.unit,
            figure.peer,
            f"{figure.peer_value:,.4g}",
            f"{figure.ratio:.2f}",
            _judgement(figure),
            beside,
        )
    console.print(table)


def _judgement(figure: Figure) -> str:
    if figure.ceiling is not None:
        return f"value <= {figure.ceiling:g} {'kept' if figure.reached else 'MISSED'}"
    if figure.bar is None:
        return ""
    measure = "value" if figure.bar_on_value else "ratio"
    return f"{measure} >= {figure.bar:g} {'reached' if figure.reached else 'MISSED'}"


def median(values: Sequence[float]) -> float:
    """The median of rounds."""
    return statistics.median(values)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _cores() -> int:

    return os.cpu_count() or 1


def _meminfo() -> float:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return float(line.split()[1])


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
