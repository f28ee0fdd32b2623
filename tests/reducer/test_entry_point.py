"""Reducers of other distributions: really installed ones, made on the fly in a folder of their own."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from services.reducer.domain import ABSENT
from services.reducer.entry_point import FOLDS, REDUCERS, EntryPointError, folds, registered
from services.reducer.node import main
from tests.reducer.node import stamping_workflow
from tests.reducer.workflow import action

EXAMPLE = Path(__file__).parents[2] / "examples" / "counter"
REDUCER = """
class Reducer:
    name, version = "third", 1
    def opens(self, action_type): return True
    def fold(self, state, action): raise NotImplementedError
"""

FOLD = """
class Fold:
    name = "third"
    def key(self, item): return item.namespace
    def initial(self): return {}
    def fold(self, state, item): return {"largest": max(state.get("largest", 0), item.size)}
    def merge(self, a, b): return {"largest": max(a.get("largest", 0), b.get("largest", 0))}
"""


class Install(Protocol):
    """Installs a distribution of one module, named for it, with one entry point."""

    def __call__(self, name: str, source: str, value: str, group: str = REDUCERS) -> None: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module, named for it, with one entry point `reducer`, or `fold`."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def install(name: str, source: str, value: str, group: str = REDUCERS) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        entry_point = "reducer" if group == REDUCERS else "fold"
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry_point} = {value}\n")
        modules.append(name)

    yield install
    for name in modules:
        sys.modules.pop(name, None)


def test_the_example_is_found_by_its_own_entry_point_and_folds(install: Install) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (value,) = project["entry-points"]["omnibridge.reducers"].values()
    install("counter_reducer", (EXAMPLE / "counter_reducer.py").read_text(), value)
    reducers = registered([stamping_workflow()])
    assert [reducer.name for reducer in reducers] == ["stamping_workflow", "counter"]
    fold = reducers.of("counter", ABSENT).fold(None, action("counted", {"by": 1000}, key="counter/visits"))
    assert fold.state == {"count": 1000}
    assert [event.event_type for event in fold.events] == ["reset_counter"]


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (REDUCER, "third:Reducer"),
        (f"{REDUCER}\nmade = Reducer()", "third:made"),
        (f"{REDUCER}\ndef make(): return Reducer()", "third:make"),
    ],
    ids=["a class", "an object", "a factory"],
)
def test_an_entry_point_names_a_reducer_or_what_makes_one(install: Install, source: str, value: str) -> None:
    install("third", source, value)
    (reducer,) = registered([])
    assert (reducer.name, reducer.version) == ("third", 1)


def test_versions_of_one_name_may_come_from_different_distributions(install: Install) -> None:
    install("third", REDUCER, "third:Reducer")
    install("newer", REDUCER.replace('"third", 1', '"third", 2'), "newer:Reducer")
    reducers = registered([])
    assert [reducer.version for reducer in reducers] == [1, 2]
    assert reducers.get("third").version == 2


@pytest.mark.parametrize(
    ("source", "value", "reason"),
    [
        ("", "third:Reducer", "AttributeError"),
        ("import nothing_of_this_name", "third:Reducer", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("1 / 0", "third:Reducer", "ZeroDivisionError"),
        ("def make(): raise RuntimeError('no')", "third:make", "RuntimeError: no"),
        ("def make(wants): ...", "third:make", "TypeError"),
        ("made = {}", "third:made", "TypeError: 'dict' object is not callable"),
        ("class Other: version = 1", "third:Other", "is no reducer: it has no name, opens, fold"),
        (REDUCER.replace('"third", 1', '"a third", 1'), "third:Reducer", "its name must be"),
        (REDUCER.replace('"third", 1', "3, 1"), "third:Reducer", "its name must be"),
        (REDUCER.replace('"third", 1', '"third", 0'), "third:Reducer", "its version must be"),
        (REDUCER.replace('"third", 1', '"third", "1"'), "third:Reducer", "its version must be"),
        (REDUCER.replace('"third", 1', '"stamping_workflow", 1'), "third:Reducer", "the node's own already"),
    ],
    ids=[
        "nothing of the name",
        "a module that imports nothing",
        "a module that fails",
        "a factory that fails",
        "a factory that wants something",
        "no reducer and no factory",
        "a class that is none",
        "a name with a space",
        "a name that is no text",
        "version 0",
        "a version that is text",
        "the node's own name and version",
    ],
)
def test_what_gives_no_reducer_is_refused_with_entry_point_and_distribution(
    install: Install, source: str, value: str, reason: str
) -> None:
    install("third", source, value)
    with pytest.raises(EntryPointError) as refusal:
        registered([stamping_workflow()])
    assert refusal.value.message.startswith("entry point reducer of third: ")
    assert reason in refusal.value.message
    assert refusal.value.metadata == {"entry_point": "reducer", "value": value, "distribution": "third"}


def test_two_distributions_with_one_name_and_version_are_refused_with_both(install: Install) -> None:
    install("third", REDUCER, "third:Reducer")
    install("twin", REDUCER, "twin:Reducer")
    with pytest.raises(
        EntryPointError, match="reducer of twin: third of version 1 is that of reducer of third already"
    ):
        registered([])


def test_the_node_does_not_start_with_an_entry_point_that_gives_no_reducer(install: Install) -> None:
    install("third", "1 / 0", "third:Reducer")
    with pytest.raises(EntryPointError, match="entry point reducer of third: ZeroDivisionError"):
        main()


def test_a_fold_is_found_beside_the_nodes_own(install: Install) -> None:
    install("third", FOLD, "third:Fold", FOLDS)
    found = folds()
    assert found.get("third").merge({"largest": 1}, {"largest": 5}) == {"largest": 5}
    assert found.get("size_histogram").initial() == {}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (FOLD.replace('"third"', '"size_histogram"'), "there is a fold size_histogram already"),
        (FOLD.replace("def merge", "def joined"), "is no fold: it has no merge"),
    ],
    ids=["the node's own name", "one that does not merge"],
)
def test_what_gives_no_fold_is_refused_with_entry_point_and_distribution(
    install: Install, source: str, reason: str
) -> None:
    install("third", source, "third:Fold", FOLDS)
    with pytest.raises(EntryPointError, match=reason) as refusal:
        folds()
    assert refusal.value.message.startswith("entry point fold of third: ")
