"""YAML that nobody vouches for is read as JSON's values, or refused with a line; by libyaml and by PyYAML's own parser."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.chassis import yaml_document
from services.chassis.yaml_document import MAX_DEPTH, DocumentError, read

LOADERS = [yaml.CSafeLoader, yaml.SafeLoader]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_document, "_LOADER", request.param)


@given(json_values)
def test_what_pyyaml_writes_is_read_back(value: object) -> None:
    assert read(yaml.safe_dump(value)).plain() == value


@given(st.text(st.sampled_from("ab1-:?[]{}&*!|>'\"%@`#,~.\n\t \\x\u2028\ufeff\0")) | st.text())
@pytest.mark.parametrize("loader", LOADERS)
def test_any_text_is_read_as_json_or_refused(loader: type[yaml.SafeLoader], text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_document, "_LOADER", loader)
        try:
            found = read(text).plain()
        except DocumentError as error:
            found = {"line": error.line, "reason": error.reason}
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param("a: 1\nb: [", 2, "", id="no end"),
        pytest.param("a: 1\n\nb: c: d", 3, "mapping values", id="no YAML"),
        pytest.param("a: 1\nb: 2\na: 3", 3, "'a' stands twice", id="a key twice"),
        pytest.param("x:\n  a: 1\n  a: 1", 3, "'a' stands twice", id="an inner key twice"),
        pytest.param("a: &x 1\nb: *x", 2, "aliases", id="an alias"),
        pytest.param("a:\n  <<: {b: 1}", 2, "tag", id="a merge key"),
        pytest.param("a: 1\n2: b", 2, "a key must be text", id="a number as key"),
        pytest.param("? [a]\n: b", 1, "a key must be text", id="a list as key"),
        pytest.param("\na: !!python/name:os.system x", 2, "tag", id="a Python tag"),
        pytest.param("a: !include b.yaml", 1, "!include", id="a foreign tag"),
        pytest.param("--- a\n--- b", 2, "second document", id="two documents"),
        pytest.param("a: .inf", 1, "finite", id="infinity"),
        pytest.param("a: " + "9" * 5000, 1, "int", id="a number that Python refuses"),
        pytest.param("a: 1\nb: \x07", 2, "", id="a control character"),
        pytest.param("a: 1\nb: \ud800", 2, "surrogate", id="a surrogate"),
        pytest.param('a: "\\ud800"', 1, "", id="an escaped surrogate"),
        pytest.param('a: "\\U00110000"', 1, "", id="an escape past the last character"),
        pytest.param("[" * 10_000, 1, f"more than {MAX_DEPTH}", id="deep"),
        pytest.param("- a\n" * 21_000, 20_000, "too many", id="long"),
    ],
)
def test_a_document_is_refused_with_its_line(text: str, line: int, reason: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(text)

    assert (caught.value.line, reason in caught.value.reason) == (line, True)


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("\ufeffa: 1", {"a": 1}),
        ("a: yes", {"a": True}),
        ("a: 2026-01-31", {"a": "2026-01-31"}),
        ("a: !!str 1", {"a": "1"}),
        ("a: 'on'\n'on': b", {"a": "on", "on": "b"}),
        ("a: &x 1", {"a": 1}),
    ],
)
def test_a_document_is_read_as_json_has_it(text: str, value: object) -> None:
    assert read(text).plain() == value


@pytest.mark.usefixtures("_parser")
def test_a_value_has_the_line_of_its_key() -> None:
    found = read("a:\n  b:\n    - 1\n\n    - 2\n").content

    assert isinstance(found, dict)
    inner = found["a"].content
    assert isinstance(inner, dict)
    items = inner["b"].content
    assert isinstance(items, list)
    assert [found["a"].line, inner["b"].line, *(item.line for item in items)] == [1, 2, 3, 5]
