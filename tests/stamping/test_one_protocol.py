"""O.N.E. v0.1: every violation with its field, from values, from YAML and from files of several languages."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.stamping.one_protocol import MAX_ITEMS, validate_block, validate_metadata

REQUIRED: Mapping[str, object] = {
    "metadata_version": "0.1",
    "name": "hash_tool",
    "namespace": "omninode.tools.hash_tool",
    "version": "1.2.3",
    "entrypoint": "hash_tool.py",
    "protocols_supported": ["O.N.E. v0.1"],
}
FULL: Mapping[str, object] = {
    **REQUIRED,
    "signature_alg": "ed25519",
    "signature_format": "base64",
    "signed_by": "key-1",
    "encryption": {"encrypted_fields": [], "encryption_alg": "none"},
    "platform_matrix": [
        {"os": "linux", "arch": "amd64", "python": ">=3.11"},
        {"os": "linux", "arch": "arm64", "python": 3.12},
        {"os": "wasi", "arch": "wasm32"},
    ],
    "runtime_constraints": {
        "sandboxed": False,
        "privileged": False,
        "requires_network": True,
        "requires_gpu": False,
    },
    "policy": {
        "network_access": True,
        "allowed_endpoints": ["https://example.org"],
        "resource_limits": {"cpu": 2, "memory": "512Mi"},
        "compliance_requirements": [],
    },
    "test_suite": True,
    "test_status": "passing",
    "coverage": 91.5,
    "ci_url": "https://ci.example.org/7",
    "registry_url": "http://registry.example.org",
    "dynamic_fields": ["trust_score", "last_registry_sync"],
}
BLOCK = yaml.safe_dump(dict(REQUIRED))


def fields(values: Mapping[str, object]) -> list[str]:
    return [violation.field for violation in validate_metadata(values)]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(REQUIRED, id="the required fields"),
        pytest.param(FULL, id="every field"),
        pytest.param({**REQUIRED, "metadata_version": 0.1}, id="the version as a number"),
        pytest.param({**FULL, "coverage": 100.0, "policy": {"resource_limits": {"cpu": 2.0}}}, id="JSON's numbers"),
        pytest.param({**REQUIRED, **dict.fromkeys(FULL.keys() - REQUIRED.keys())}, id="null for what is optional"),
        pytest.param({**REQUIRED, "author": "somebody", "mock_safe": True, "tags": ["a"]}, id="keys of its own"),
        pytest.param({**REQUIRED, "name": "__init__", "namespace": "omninode.tools.__init__"}, id="public names"),
        pytest.param({**REQUIRED, "protocols_supported": ["X v9", "O.N.E. v0.1"]}, id="another protocol too"),
    ],
)
def test_metadata_of_the_protocol_has_no_violation(values: Mapping[str, object]) -> None:
    assert validate_metadata(values) == []
    assert validate_metadata(json.loads(json.dumps(values))) == []
    assert validate_block(yaml.safe_dump(dict(values))) == []


@pytest.mark.parametrize("field", REQUIRED)
def test_a_required_field_that_is_missing_or_null_is_a_violation(field: str) -> None:
    assert fields({name: value for name, value in REQUIRED.items() if name != field}) == [field]
    assert fields({**REQUIRED, field: None}) == [field]


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("metadata_version", "0.2", "metadata_version"),
        ("metadata_version", 1, "metadata_version"),
        ("metadata_version", True, "metadata_version"),
        ("metadata_version", {}, "metadata_version"),
        ("name", "", "name"),
        ("name", 5, "name"),
        ("namespace", "a b", "namespace"),
        ("namespace", "a" * 256, "namespace"),
        ("version", "1.2", "version"),
        ("version", "v1.2.3", "version"),
        ("version", "1.2.3\n", "version"),
        ("version", 1.2, "version"),
        ("entrypoint", [], "entrypoint"),
        ("protocols_supported", [], "protocols_supported"),
        ("protocols_supported", ["O.N.E. v0.2"], "protocols_supported"),
        ("protocols_supported", "O.N.E. v0.1", "protocols_supported"),
        ("protocols_supported", ["O.N.E. v0.1", 5], "protocols_supported[1]"),
        ("signature_alg", "rsa", "signature_alg"),
        ("signature_format", 1, "signature_format"),
        ("signed_by", {}, "signed_by"),
        ("encryption", "none", "encryption"),
        ("encryption", {"encryption_alg": 1}, "encryption.encryption_alg"),
        ("encryption", {"encrypted_fields": [None]}, "encryption.encrypted_fields[0]"),
        ("platform_matrix", {}, "platform_matrix"),
        ("platform_matrix", [{"arch": "amd64"}], "platform_matrix[0].os"),
        ("platform_matrix", [{"os": "linux", "arch": "amd64"}, {"os": "linux"}], "platform_matrix[1].arch"),
        ("platform_matrix", [{"os": "linux", "arch": "amd64", "python": []}], "platform_matrix[0].python"),
        ("platform_matrix", [{"os": "linux", "arch": "amd64", "cpu": "x"}], "platform_matrix[0].cpu"),
        ("platform_matrix", [{"os": "linux", "arch": "amd64"}] * (MAX_ITEMS + 1), "platform_matrix"),
        ("runtime_constraints", {"sandboxed": "yes"}, "runtime_constraints.sandboxed"),
        ("runtime_constraints", {"requires_gpu": 1}, "runtime_constraints.requires_gpu"),
        ("runtime_constraints", {"sandboxd": True}, "runtime_constraints.sandboxd"),
        ("policy", {"network_access": "some"}, "policy.network_access"),
        ("policy", {"allowed_endpoints": "x"}, "policy.allowed_endpoints"),
        ("policy", {"allowed_endpoints": [""]}, "policy.allowed_endpoints[0]"),
        ("policy", {"resource_limits": {"cpu": True}}, "policy.resource_limits.cpu"),
        ("policy", {"compliance_requirements": [1]}, "policy.compliance_requirements[0]"),
        ("test_suite", 1, "test_suite"),
        ("test_status", True, "test_status"),
        ("coverage", "91 %", "coverage"),
        ("coverage", 100.1, "coverage"),
        ("coverage", True, "coverage"),
        ("ci_url", "ftp://example.org", "ci_url"),
        ("registry_url", "example.org", "registry_url"),
        ("dynamic_fields", {"trust_score": 1}, "dynamic_fields"),
        ("dynamic_fields", ["trust_score", 1], "dynamic_fields[1]"),
    ],
)
def test_a_value_that_its_field_does_not_take_is_a_violation_of_its_path(field: str, value: object, path: str) -> None:
    assert fields({**REQUIRED, field: value}) == [path]


def test_every_violation_is_named_in_the_order_of_the_fields() -> None:
    assert fields({"coverage": -1, "platform_matrix": [{}], "version": "1", "namespace": "", "entrypoint": "x"}) == [
        "metadata_version",
        "name",
        "namespace",
        "version",
        "protocols_supported",
        "platform_matrix[0].os",
        "platform_matrix[0].arch",
        "coverage",
    ]


@pytest.mark.parametrize("field", FULL)
def test_a_value_of_any_depth_is_a_violation_of_its_field(field: str) -> None:
    deep: object = "leaf"
    for _ in range(10_000):
        deep = {"a": [deep]}

    assert {path.split(".")[0] for path in fields({**REQUIRED, field: deep})} == {field}
    assert fields({**REQUIRED, "author": deep}) == []


def commented(prefix: str, *marks: str) -> str:
    """The block's lines after the prefix, between the marks."""
    lines = "".join(
        f"{prefix}{line}\n" for line in [*BLOCK.splitlines(), "description: |", "", "  several", "  * lines"]
    )
    return f"{marks[0]}\n{lines}{marks[1]}\n"


OPEN, CLOSE = "=== OmniNode:Tool_Metadata ===", "=== /OmniNode:Tool_Metadata ==="
FILES = {
    "byte order mark": "\ufeff" + commented("# ", f"# {OPEN}", f"# {CLOSE}"),
    "python": "#!/usr/bin/env python3\n\n" + commented("# ", f"# {OPEN}", f"# {CLOSE}") + "\nimport os\n",
    "hash without a space": commented("#", f"#{OPEN}", f"#{CLOSE}"),
    "hash, indented": commented("    # ", f"    # {OPEN}", f"    # {CLOSE}"),
    "rust": "// license\n" + commented("// ", f"// {OPEN}", f"// {CLOSE}") + "fn main() {}\n",
    "javascript, one comment": commented(" * ", f"/* {OPEN}", f" * {CLOSE} */"),
    "javascript, bare": commented("", f"/* {OPEN}", f"{CLOSE} */"),
    "javascript, marks that close": commented("// ", f"/* {OPEN} */", f"/* {CLOSE} */"),
    "javascript, bare between marks that close": commented("", f"/* {OPEN} */", f"/* {CLOSE} */"),
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_block_is_found_in_a_file(text: str, newline: str) -> None:
    text = text.replace("\n", newline)

    assert validate_block(text) == []
    assert [violation.field for violation in validate_block(text.replace("1.2.3", "1.2"))] == ["version"]


def test_the_first_block_counts() -> None:
    text = FILES["python"] + FILES["python"].replace("1.2.3", "1.2")

    assert validate_block(text) == []


@pytest.mark.parametrize(
    ("text", "description"),
    [
        pytest.param("", "line 1: must be a mapping", id="empty"),
        pytest.param("import os\n", "line 1: must be a mapping", id="no metadata"),
        pytest.param("- a\n", "line 1: must be a mapping", id="a list"),
        pytest.param("a: 1\na: 2\n", "line 2: the key 'a' stands twice", id="a key twice"),
        pytest.param("a: &x 1\nb: *x\n", "line 2: aliases are not supported", id="an alias"),
        pytest.param(f"# {OPEN}\n# name: x\n", "line 1: the block is not closed", id="no closing mark"),
        pytest.param(f"\n# {OPEN}\n# {CLOSE}\n", "line 3: must be a mapping", id="an empty block"),
        pytest.param(
            f"\n# {OPEN}\n# a: 1\n# a: 2\n# {CLOSE}\n", "line 4: the key 'a' stands twice", id="a line in a file"
        ),
        pytest.param(
            f"# {OPEN}\n# a: 1\nb: 2\n# {CLOSE}\n", "line 3: must begin with #", id="a line that is no comment"
        ),
        pytest.param("a: 1" + ":59" * 1_000 + ".5", "line 1: not a valid float", id="a float past the largest"),
        pytest.param("[" * 1_000, "line 1: nested more than 64 levels deep", id="deep"),
        pytest.param("a: [" + "1," * 3_000 + "]", "line 1: too many values", id="many values"),
        pytest.param(
            f"/* {OPEN}\n * a: 1\nb: 2\n {CLOSE} */\n", "line 3: must begin with *", id="a line without its star"
        ),
    ],
)
def test_text_without_metadata_is_a_violation_of_the_block_with_its_line(text: str, description: str) -> None:
    assert [(violation.field, violation.description) for violation in validate_block(text)] == [("block", description)]


def test_a_line_of_white_space_is_read_in_linear_time() -> None:
    text = f"# {OPEN}\n{' ' * 60_000}=\n# {CLOSE}\n"

    began = time.process_time()
    assert validate_block(text)[0].field == "block"
    # It takes a millisecond; a pattern with two runs of white space side by side takes half a minute.
    assert time.process_time() - began < 2


marks = st.sampled_from(
    [f"# {OPEN}", f"# {CLOSE}", f"/* {OPEN}", f"{CLOSE} */", f"// {OPEN}", "# ", " * ", "\n", "\r\n"]
)
texts = st.lists(marks | st.text(max_size=20) | st.sampled_from([BLOCK, "a: [", "&a", "*a", "\0", "\ud800"])).map(
    "".join
)


@settings(max_examples=200)
@given(texts)
def test_any_text_gives_violations_that_a_message_can_hold(text: str) -> None:
    for violation in validate_block(text):
        assert violation.field.encode()
        assert violation.description.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(FULL)), json_values))
def test_any_values_give_violations_of_fields_of_the_protocol(values: Mapping[str, object]) -> None:
    for violation in validate_metadata(values):
        assert violation.field.split(".")[0].split("[")[0] in FULL


@given(st.dictionaries(st.sampled_from(sorted(FULL)), json_values))
def test_the_order_of_the_keys_changes_nothing(values: Mapping[str, object]) -> None:
    assert validate_metadata(dict(reversed(list(values.items())))) == validate_metadata(values)
