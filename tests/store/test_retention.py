"""Retention's settings, and what of a partition may go by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from omninode.bridge.store.v1 import store_pb2 as pb
from services.chassis import contracts, settings
from services.chassis.settings import NodeSettings, SettingsError
from services.store.retention import Floor, RetentionKind, RetentionSettings

CONTRACT = contracts.load(Path(__file__).resolve().parents[2] / "services/store/contract.yaml")


class OnlyRetention(NodeSettings):
    """A node with nothing but this section."""

    retention: RetentionSettings


def load(**variables: str) -> RetentionSettings:
    contract = replace(CONTRACT, settings={})
    return settings.load(OnlyRetention, node="store", contract=contract, environ=variables).retention


def test_the_two_shared_variables_set_the_dedup_and_its_interval() -> None:
    loaded = load(ACTION_DEDUP_TTL_HOURS="2.5", ACTION_DEDUP_CLEANUP_INTERVAL_HOURS="0.5")
    assert (loaded.dedup_hours, loaded.sweep_interval_hours) == (2.5, 0.5)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        pytest.param({"ACTION_DEDUP_TTL_HOURS": "200"}, ("dedup_hours", "commit_log_hours"), id="dedup over log"),
        pytest.param(
            {"OMNIBRIDGE_STORE__RETENTION__FINISHED_HOURS": "5"},
            ("dedup_hours", "finished_hours"),
            id="dedup over keys",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_start_with_their_names(
    variables: dict[str, str], named: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**variables)
    assert all(name in str(caught.value) for name in named)


@pytest.mark.parametrize("name", [name for name in RetentionSettings.model_fields if name.endswith("_hours")])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e9"])
def test_a_time_that_is_none_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"OMNIBRIDGE_STORE__RETENTION__{name.upper()}"):
        load(**{f"OMNIBRIDGE_STORE__RETENTION__{name.upper()}": value})


def test_the_kinds_are_the_contracts() -> None:
    assert {f"RETENTION_KIND_{kind.name}": kind.value for kind in RetentionKind} == {
        name: number for name, number in pb.RetentionKind.items() if number
    }


@pytest.mark.parametrize(
    ("floor", "target", "held"),
    [
        pytest.param(Floor(first=0, aged=0, read=9), 0, 0, id="nothing is old"),
        pytest.param(Floor(first=3, aged=7, read=9), 7, 0, id="all that is old is read"),
        pytest.param(Floor(first=3, aged=7, read=5), 5, 2, id="some of it is not"),
        pytest.param(Floor(first=3, aged=7, read=0), 3, 4, id="none of what is left is"),
        pytest.param(Floor(first=7, aged=7, read=0), 7, 0, id="what is gone is not held"),
    ],
)
def test_a_floor_moves_up_to_what_is_old_and_read(floor: Floor, target: int, held: int) -> None:
    assert (floor.target, floor.held) == (target, held)
