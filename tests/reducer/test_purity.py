"""Every reducer is pure, and what it made of the recorded actions it makes for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from tests.reducer.pure import DIGESTS, reducers
from tests.reducer.replay import logs, replayed

EXPECTED: Mapping[str, Sequence[str]] = json.loads(DIGESTS.read_text())
"""What each recorded action makes, as replay.py digests it. A change here is a change of what is stored: of the workflow's actions
it takes a new version of the reducer."""


def test_the_recorded_actions_fold_to_the_recorded_bytes() -> None:
    assert replayed(logs(), reducers()) == EXPECTED


def test_every_reducer_folds_the_same_bytes_in_another_process_without_the_world() -> None:
    # Another seed of hashes, so that the order of a set or of hashed keys cannot hide.
    run = subprocess.run(
        [sys.executable, "-m", "tests.reducer.replay"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONHASHSEED": "17"},
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == EXPECTED


def test_every_reducer_has_recorded_actions() -> None:
    recorded = {action["reducer"] for actions in logs().values() for action in actions}
    assert {reducer.name for reducer in reducers()} <= recorded


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_recorded_log_is_told_apart_action_by_action(name: str) -> None:
    assert len(EXPECTED[name]) == len(logs()[name]) > 1
