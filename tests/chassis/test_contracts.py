"""Contracts: put together from files, and refused with the file and the line of what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from services.chassis.contracts import Contract, ContractError, NodeType, SubcontractKind, load

HEAD = """\
name: example
node_type: REDUCER
contract_version: {major: 1, minor: 2, patch: 3}
description: Folds.
"""


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Write the files into the folder; the path of its contract."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "contract.yaml"


def refusal(path: Path) -> tuple[str, int, str]:
    """The file, line and reason of the contract's refusal."""
    with pytest.raises(ContractError) as caught:
        load(path)
    place = caught.value.place
    name = place.file.relative_to(path.parent).as_posix()
    assert str(caught.value) == f"{path.parent / name}:{place.line}: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    return name, place.line, caught.value.reason


def test_a_contract_of_one_file_is_loaded(tmp_path: Path) -> None:
    path = write(tmp_path, {"contract.yaml": HEAD + "settings:\n  server:\n    port: 50053\n"})

    contract = load(path)

    assert (contract.name, contract.node_type, contract.description) == ("example", NodeType.REDUCER, "Folds.")
    assert str(contract.contract_version) == "1.2.3"
    assert contract.settings == {"server": {"port": 50053}}
    assert contract.subcontracts == {}
    assert contract.document["contract_version"] == {"major": 1, "minor": 2, "patch": 3}


def test_settings_may_be_left_out(tmp_path: Path) -> None:
    assert load(write(tmp_path, {"contract.yaml": HEAD})).settings == {}


def nested(folder: Path) -> Contract:
    return load(
        write(
            folder,
            {
                "contract.yaml": HEAD + 'fsm: {$ref: "./subcontracts/fsm.yaml"}\n'
                "aggregation:\n  window:\n    $ref: subcontracts/parts/window.yaml\n",
                "subcontracts/fsm.yaml": "initial: pending\nstates:\n  - $ref: ./parts/pending.yaml\n  - {name: done}\n",
                "subcontracts/parts/pending.yaml": "# a state\nname: pending\n",
                "subcontracts/parts/window.yaml": "size_ms: 5000\n",
            },
        )
    )


def test_references_are_put_in_place_from_the_file_that_they_stand_in(tmp_path: Path) -> None:
    contract = nested(tmp_path)

    assert contract.subcontracts == {
        SubcontractKind.FSM: {"initial": "pending", "states": [{"name": "pending"}, {"name": "done"}]},
        SubcontractKind.AGGREGATION: {"window": {"size_ms": 5000}},
    }
    assert contract.document["fsm"] == contract.subcontracts[SubcontractKind.FSM]


@pytest.mark.parametrize(
    ("location", "file", "line"),
    [
        (("name",), "contract.yaml", 1),
        (("fsm", "initial"), "subcontracts/fsm.yaml", 1),
        (("fsm", "states", 0, "name"), "subcontracts/parts/pending.yaml", 2),
        (("fsm", "states", 1, "name"), "subcontracts/fsm.yaml", 4),
        (("fsm", "states", 7), "subcontracts/fsm.yaml", 2),
        (("aggregation", "window", "size_ms"), "subcontracts/parts/window.yaml", 1),
        (("nothing", "at", "all"), "contract.yaml", 1),
    ],
)
def test_every_value_knows_where_it_was_written(
    tmp_path: Path, location: tuple[str | int, ...], file: str, line: int
) -> None:
    place = nested(tmp_path).place(*location)

    assert (place.file, place.line) == (tmp_path / file, line)


def test_one_file_may_be_named_twice(tmp_path: Path) -> None:
    contract = load(
        write(
            tmp_path,
            {"contract.yaml": HEAD + "fsm:\n  a: {$ref: x.yaml}\n  b: {$ref: x.yaml}\n", "x.yaml": "{y: 1}"},
        )
    )

    assert contract.subcontracts[SubcontractKind.FSM] == {"a": {"y": 1}, "b": {"y": 1}}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param("name: [", 1, "", id="no YAML"),
        pytest.param("", 1, "must be a mapping", id="empty"),
        pytest.param("- a", 1, "must be a mapping", id="a list"),
        pytest.param(HEAD + "name: other\n", 5, "stands twice", id="a key twice"),
        pytest.param(HEAD + "setings: {}\n", 5, "setings: is no key of a contract", id="an unknown key"),
        pytest.param(HEAD + "settings: 5\n", 5, "settings: ", id="settings are no mapping"),
        pytest.param(HEAD + "routing: [1]\n", 5, "routing: must be a mapping", id="a subcontract is no mapping"),
        pytest.param(HEAD + "a: &x {}\nb: *x\n", 6, "aliases", id="an alias"),
        pytest.param(HEAD.replace("name: example\n", ""), 1, "name: ", id="no name"),
        pytest.param(HEAD.replace("REDUCER", "reducer"), 2, "node_type: ", id="an unknown node type"),
        pytest.param(HEAD.replace("2,", '"2",'), 3, "contract_version.minor: ", id="a version in text"),
        pytest.param(HEAD.replace("2,", "-2,"), 3, "contract_version.minor: ", id="a negative version"),
        pytest.param(HEAD.replace("3}", "3, x: 4}"), 3, "contract_version.x: ", id="a version of four parts"),
        pytest.param(HEAD.replace("example", "An example"), 1, "name: ", id="a name that is none"),
        pytest.param(HEAD + "settings: {$ref: x.yaml, port: 1}\n", 5, "alone", id="a reference beside keys"),
        pytest.param(HEAD + "settings: {$ref: 5}\n", 5, "must be the path", id="a reference that is no text"),
        pytest.param(HEAD + "settings: {$ref: ''}\n", 5, "must be the path", id="an empty reference"),
        pytest.param(HEAD + 'settings: {$ref: "a\\0b"}\n', 5, "must be the path", id="a reference with NUL"),
        pytest.param(HEAD + "settings: {$ref: [x.yaml]}\n", 5, "must be the path", id="a list of references"),
        pytest.param(HEAD + "settings: {$ref: /etc/passwd}\n", 5, "relative", id="an absolute path"),
        pytest.param(HEAD + "settings: {$ref: 'C:\\x.yaml'}\n", 5, "relative", id="a drive"),
        pytest.param(HEAD + "settings: {$ref: ../x.yaml}\n", 5, "no `..`", id="the folder above"),
        pytest.param(HEAD + "settings: {$ref: a/../x.yaml}\n", 5, "no `..`", id="the folder above, inside"),
        pytest.param(HEAD + "settings: {$ref: 'a\\..\\x.yaml'}\n", 5, "no `..`", id="the folder above, backslashes"),
        pytest.param(HEAD + "settings: {$ref: x.yaml}\n", 5, "no such file", id="a missing file"),
        pytest.param(HEAD + "settings: {$ref: .}\n", 5, "no such file", id="a folder"),
        pytest.param(HEAD + f"settings: {{$ref: {'x' * 300}}}\n", 5, "", id="a name too long"),
        pytest.param(HEAD + "settings:\n  $ref: contract.yaml\n", 6, "contract.yaml -> contract.yaml", id="itself"),
    ],
)
def test_a_contract_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    found = refusal(write(tmp_path, {"contract.yaml": text}))

    assert found[:2] == ("contract.yaml", line)
    assert reason in found[2]


def test_a_contract_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "contract.yaml")[:2] == ("contract.yaml", 1)


def test_what_is_wrong_in_a_subcontract_is_placed_in_it(tmp_path: Path) -> None:
    path = write(tmp_path, {"contract.yaml": HEAD + "fsm: {$ref: s/x.yaml}\n", "s/x.yaml": "a: 1\n\na: 2\n"})

    assert refusal(path)[:2] == ("s/x.yaml", 3)


def test_bytes_that_are_no_utf_8_are_placed(tmp_path: Path) -> None:
    (tmp_path / "contract.yaml").write_bytes(HEAD.encode() + b"settings: {a: \xff}\n")

    assert refusal(tmp_path / "contract.yaml") == ("contract.yaml", 5, "is not UTF-8")


def test_a_cycle_is_shown(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "contract.yaml": HEAD + "fsm: {$ref: a.yaml}\n",
            "a.yaml": "next:\n  $ref: s/b.yaml\n",
            "s/b.yaml": "- {$ref: c.yaml}\n",
            "s/c.yaml": "",
        },
    )
    (tmp_path / "s" / "c.yaml").unlink()
    (tmp_path / "s" / "c.yaml").symlink_to("../a.yaml")

    file, line, reason = refusal(path)

    assert (file, line) == ("s/b.yaml", 1)
    assert reason.endswith("cycle: a.yaml -> s/b.yaml -> a.yaml")


def test_a_folder_that_is_linked_into_itself_is_a_cycle(tmp_path: Path) -> None:
    path = write(tmp_path, {"contract.yaml": HEAD + "fsm: {$ref: s/contract.yaml}\n"})
    (tmp_path / "s").symlink_to(".")

    assert "cycle" in refusal(path)[2]


@pytest.mark.parametrize("target", ["outside.yaml", "outside"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path, {"outside.yaml": "a: 1", "outside/x.yaml": "a: 1"})
    reference = {"outside.yaml": "link", "outside": "link/x.yaml"}[target]
    path = write(tmp_path / "inside", {"contract.yaml": HEAD + f"fsm: {{$ref: {reference}}}\n"})
    (tmp_path / "inside" / "link").symlink_to(tmp_path / target)

    file, line, reason = refusal(path)

    assert (file, line) == ("contract.yaml", 5)
    assert "leads out" in reason


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"contract.yaml": HEAD + "fsm: {$ref: loop.yaml}\n"})
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")

    assert refusal(path)[:2] == ("contract.yaml", 5)


def test_a_folder_of_links_as_kubernetes_mounts_it_is_loaded(tmp_path: Path) -> None:
    write(tmp_path / "..version", {"contract.yaml": HEAD + "fsm: {$ref: fsm.yaml}\n", "fsm.yaml": "a: 1\n"})
    for name in ("contract.yaml", "fsm.yaml"):
        (tmp_path / name).symlink_to(f"..version/{name}")

    assert load(tmp_path / "contract.yaml").subcontracts == {SubcontractKind.FSM: {"a": 1}}


def test_references_that_double_at_each_step_are_bounded(tmp_path: Path) -> None:
    files = {f"{n}.yaml": f"[{{$ref: {n + 1}.yaml}}, {{$ref: {n + 1}.yaml}}]" for n in range(14)}
    path = write(tmp_path, {"contract.yaml": HEAD + "fsm: {a: {$ref: 0.yaml}}\n", **files, "14.yaml": "x" * 1000})

    assert "too large" in refusal(path)[2]


def test_a_chain_of_references_is_bounded(tmp_path: Path) -> None:
    files = {f"{n}.yaml": f"$ref: {n + 1}.yaml" for n in range(100)}
    path = write(tmp_path, {"contract.yaml": HEAD + "fsm: {$ref: 0.yaml}\n", **files})

    assert "lead to one another" in refusal(path)[2]


def test_nesting_through_references_is_bounded(tmp_path: Path) -> None:
    deep = "[" * 50 + "{}" + "]" * 50
    files = {f"{n}.yaml": deep.replace("{}", f"{{$ref: {n + 1}.yaml}}") for n in range(10)}
    path = write(tmp_path, {"contract.yaml": HEAD + "fsm: {a: {$ref: 0.yaml}}\n", **files, "10.yaml": "1"})

    assert "levels deep" in refusal(path)[2]


def test_the_size_of_the_files_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path, {"contract.yaml": HEAD})

    with pytest.raises(ContractError, match="too large"):
        load(path, max_bytes=len(HEAD) - 1)
    assert load(path, max_bytes=len(HEAD)).name == "example"
