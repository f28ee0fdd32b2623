"""Settings: the environment over the contract over the defaults, and a refusal that names everything that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from services.chassis import contracts
from services.chassis.contracts import Contract
from services.chassis.settings import NodeSettings, SettingsError, SharedVariable, describe, load

CONFIG = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
URL = "postgresql://me:s3cret@host/name"


class Listening(BaseModel):
    model_config = CONFIG

    host: str = "127.0.0.1"
    """Where it listens.

    Loopback is safe."""
    port: int = Field(0, ge=0, le=65535)
    peers: list[str] = []
    grace: float | None = None
    loud: bool = False


class Storage(BaseModel):
    model_config = CONFIG

    url: Annotated[str, SharedVariable("DATABASE_URL")] = Field(pattern=r"^postgresql://", repr=False)
    token: SecretStr = SecretStr("t0ken")

    @field_validator("url")
    @classmethod
    def _has_a_name(cls, url: str) -> str:
        if url.count("/") < 3:
            raise ValueError(f"{url} names no database")
        return url


class ExampleSettings(NodeSettings):
    server: Listening
    database: Storage


def contract(tmp_path: Path, settings: str = "") -> Contract:
    path = tmp_path / "contract.yaml"
    path.write_text(
        "name: example\nnode_type: COMPUTE\ncontract_version: {major: 1, minor: 0, patch: 0}\ndescription: One.\n"
        + settings
    )
    return contracts.load(path)


def loaded(found: Contract, environ: Mapping[str, str]) -> ExampleSettings:
    return load(ExampleSettings, node="example", contract=found, environ=environ)


def refusal(found: Contract, environ: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(found, environ)
    message = str(caught.value)
    assert "\n" not in message
    assert "s3cret" not in message
    return message.replace(str(found.path), "contract.yaml")


@pytest.mark.parametrize(
    ("settings", "environ", "port"),
    [
        pytest.param("", {}, 0, id="the default"),
        pytest.param("settings: {server: {port: 1}}", {}, 1, id="the contract over it"),
        pytest.param("", {"OMNIBRIDGE_EXAMPLE__SERVER__PORT": "2"}, 2, id="the environment over the default"),
        pytest.param(
            "settings: {server: {port: 1}}", {"OMNIBRIDGE_EXAMPLE__SERVER__PORT": "2"}, 2, id="over the contract"
        ),
        pytest.param(
            "settings: {server: {port: 1}}", {"OMNIBRIDGE_EXAMPLE__SERVER__HOST": "::"}, 1, id="another field alone"
        ),
        pytest.param(
            "settings: {server: {port: 1}}", {"OMNIBRIDGE_EXAMPLE__SERVER__PORT": ""}, 1, id="an empty variable"
        ),
        pytest.param("", {"OMNIBRIDGE_EXAMPLE_PORT": "tcp://10.0.0.1:1"}, 0, id="a variable that Kubernetes made"),
        pytest.param("", {"OMNIBRIDGE_OTHER__SERVER__PORT": "2"}, 0, id="another node's"),
    ],
)
def test_the_environment_wins_over_the_contract_and_the_contract_over_the_default(
    tmp_path: Path, settings: str, environ: Mapping[str, str], port: int
) -> None:
    assert loaded(contract(tmp_path, settings), {"DATABASE_URL": URL, **environ}).server.port == port


@pytest.mark.parametrize(
    ("settings", "environ", "user"),
    [
        pytest.param("", {"DATABASE_URL": "postgresql://shared@h/n"}, "shared", id="the shared variable"),
        pytest.param(
            "",
            {"DATABASE_URL": "postgresql://shared@h/n", "OMNIBRIDGE_EXAMPLE__DATABASE__URL": "postgresql://own@h/n"},
            "own",
            id="the node's own over it",
        ),
        pytest.param(
            "settings: {database: {url: 'postgresql://contract@h/n'}}",
            {"DATABASE_URL": "postgresql://shared@h/n"},
            "shared",
            id="the shared variable over the contract",
        ),
        pytest.param("settings: {database: {url: 'postgresql://contract@h/n'}}", {}, "contract", id="the contract"),
    ],
)
def test_a_shared_variable_gives_way_to_the_nodes_own(
    tmp_path: Path, settings: str, environ: Mapping[str, str], user: str
) -> None:
    assert loaded(contract(tmp_path, settings), environ).database.url == f"postgresql://{user}@h/n"


def test_variables_are_read_as_their_fields_type(tmp_path: Path) -> None:
    server = loaded(
        contract(tmp_path),
        {
            "DATABASE_URL": URL,
            "OMNIBRIDGE_EXAMPLE__SERVER__PEERS": '["a", "b"]',
            "OMNIBRIDGE_EXAMPLE__SERVER__GRACE": "1.5",
            "OMNIBRIDGE_EXAMPLE__SERVER__LOUD": "true",
        },
    ).server

    assert (server.peers, server.grace, server.loud) == (["a", "b"], 1.5, True)


@pytest.mark.parametrize(
    ("settings", "environ", "message"),
    [
        pytest.param(
            "",
            {"OMNIBRIDGE_EXAMPLE__SERVER__PROT": "1"},
            "OMNIBRIDGE_EXAMPLE__SERVER__PROT: is no setting",
            id="an unknown variable",
        ),
        pytest.param(
            "",
            {"OMNIBRIDGE_EXAMPLE__PORT": ""},
            "OMNIBRIDGE_EXAMPLE__PORT: is no setting",
            id="an unknown section, though empty",
        ),
        pytest.param(
            "",
            {"OMNIBRIDGE_EXAMPLE__SERVER__PORT": "tcp://10.0.0.1:1"},
            "OMNIBRIDGE_EXAMPLE__SERVER__PORT: must be a valid integer, unable to parse string as an integer",
            id="a malformed variable",
        ),
        pytest.param(
            "",
            {"OMNIBRIDGE_EXAMPLE__SERVER__PORT": "65536"},
            "OMNIBRIDGE_EXAMPLE__SERVER__PORT: must be less than or equal to 65535",
            id="a variable out of range",
        ),
        pytest.param(
            "",
            {"OMNIBRIDGE_EXAMPLE__SERVER__PEERS": "a,b"},
            "OMNIBRIDGE_EXAMPLE__SERVER__PEERS: must be a valid list",
            id="a variable that is no JSON",
        ),
        pytest.param(
            "settings:\n  server:\n    prot: 1",
            {},
            "contract.yaml:7: settings.server.prot: is no setting",
            id="an unknown key",
        ),
        pytest.param(
            "settings:\n  servre: {}", {}, "contract.yaml:6: settings.servre: is no setting", id="an unknown section"
        ),
        pytest.param(
            "settings:\n  server:\n\n    port: -1",
            {},
            "contract.yaml:8: settings.server.port: must be greater than or equal to 0",
            id="a malformed key",
        ),
        pytest.param(
            "settings:\n  server:\n    peers:\n    - a\n    - 5",
            {},
            "contract.yaml:9: settings.server.peers.1: must be a valid string",
            id="a malformed item",
        ),
        pytest.param(
            "settings:\n  server: 5", {}, "contract.yaml:6: settings.server: must be a mapping", id="no section"
        ),
        pytest.param(
            "settings:\n  server: 5",
            {"OMNIBRIDGE_EXAMPLE__SERVER__PORT": "5"},
            "contract.yaml:6: settings.server: must be a mapping",
            id="no section, under a variable",
        ),
    ],
)
def test_what_is_unknown_or_malformed_is_refused_by_name(
    tmp_path: Path, settings: str, environ: Mapping[str, str], message: str
) -> None:
    assert refusal(contract(tmp_path, settings), {"DATABASE_URL": URL, **environ}) == message


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(
        contract(tmp_path, "settings: {server: {port: -1, x: 1}}"), {"OMNIBRIDGE_EXAMPLE__SERVER__GRACE": "long"}
    )

    for name in (
        "server.port: ",
        "server.x: ",
        "SERVER__GRACE: ",
        "EXAMPLE__DATABASE__URL or DATABASE_URL: must be set",
    ):
        assert name in message


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        pytest.param("DATABASE_URL", "mysql://me:s3cret@h/n", "must match pattern", id="by a pattern"),
        pytest.param("DATABASE_URL", "postgresql://me:s3cret@h", "is malformed", id="by a validator that quotes it"),
        pytest.param("OMNIBRIDGE_EXAMPLE__DATABASE__URL", "s3cret", "must match pattern", id="of the node's own"),
    ],
)
def test_a_secret_is_refused_by_the_name_of_its_variable_and_never_shown(
    tmp_path: Path, variable: str, value: str, reason: str
) -> None:
    assert refusal(contract(tmp_path), {variable: value}).startswith(f"{variable}: {reason}")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_any_value_is_taken_or_refused_with_its_name(value: str) -> None:
    found = Contract(
        Path("contract.yaml"),
        "example",
        contracts.NodeType.COMPUTE,
        contracts.ContractVersion(major=1, minor=0, patch=0),
        "One.",
        {},
        {},
        {},
        {(): contracts.Place(Path("contract.yaml"), 1)},
    )
    environ = {"DATABASE_URL": URL} | {
        f"OMNIBRIDGE_EXAMPLE__SERVER__{name}": value for name in ("PORT", "PEERS", "LOUD")
    }
    try:
        settings = loaded(found, environ)
    except SettingsError as error:
        for problem in str(error).split("; "):
            assert problem.startswith("OMNIBRIDGE_EXAMPLE__SERVER__")
    else:
        assert 0 <= settings.server.port <= 65535


def test_settings_are_frozen() -> None:
    settings = ExampleSettings(server=Listening(), database=Storage(url=URL))

    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, "server", Listening(port=1))  # noqa: B010 (the type checker knows that it is frozen)


def test_settings_made_directly_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER", "{}")

    with pytest.raises(ValidationError, match="server\n  Field required"):
        ExampleSettings(database=Storage(url=URL))


def test_every_setting_is_described_in_order(tmp_path: Path) -> None:
    found = contract(tmp_path, f"settings: {{server: {{port: 50}}, database: {{token: '{URL}'}}}}")
    rows = describe(ExampleSettings, node="example", contract=found)

    assert [(row.variable, row.shared_variable, row.type, row.default) for row in rows] == [
        ("OMNIBRIDGE_EXAMPLE__SERVER__HOST", None, "str", '"127.0.0.1"'),
        ("OMNIBRIDGE_EXAMPLE__SERVER__PORT", None, "int", "50"),
        ("OMNIBRIDGE_EXAMPLE__SERVER__PEERS", None, "list[str]", "[]"),
        ("OMNIBRIDGE_EXAMPLE__SERVER__GRACE", None, "float | None", "null"),
        ("OMNIBRIDGE_EXAMPLE__SERVER__LOUD", None, "bool", "false"),
        ("OMNIBRIDGE_EXAMPLE__DATABASE__URL", "DATABASE_URL", "str", None),
        ("OMNIBRIDGE_EXAMPLE__DATABASE__TOKEN", None, "SecretStr", "(secret)"),
    ]
    assert (rows[0].section, rows[0].field) == ("server", "host")
    assert rows[0].description == "Where it listens. Loopback is safe."


def test_a_section_that_is_no_model_or_has_a_default_is_a_mistake_of_the_class(tmp_path: Path) -> None:
    class Bare(NodeSettings):
        port: int

    class Defaulted(NodeSettings):
        server: Listening = Listening()

    for wrong in (Bare, Defaulted):
        with pytest.raises(TypeError, match="must be a section"):
            load(wrong, node="example", contract=contract(tmp_path), environ={})
