"""The breaker as a state machine: tables of what each event leads to, and laws over any run of events."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chassis.breaker import Breaker, BreakerState

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN


class Rig:
    """A breaker with probes from 0.5 to 4 s, a clock set by hand and the states that it told of."""

    def __init__(self, threshold: int = 3) -> None:
        self.now = 100.0
        self.states: list[BreakerState] = []
        self.breaker = Breaker(
            threshold=threshold, probe_initial=0.5, probe_max=4.0, clock=lambda: self.now, on_change=self.states.append
        )

    def permit(self) -> int:
        permit = self.breaker.admit()
        assert permit is not None
        return permit

    def play(self, events: str) -> None:
        """Uses: f fails, s succeeds, a is abandoned, x is refused. Probes: P is answered, p fails."""
        for event in events:
            match event:
                case "f":
                    self.breaker.failed(self.permit())
                case "s":
                    self.breaker.succeeded(self.permit())
                case "a":
                    self.breaker.abandoned(self.permit())
                case "x":
                    assert not self.breaker.admits
                    assert self.breaker.admit() is None
                case "P":
                    self.breaker.probe_answered()
                case "p":
                    self.breaker.probe_failed()


@pytest.mark.parametrize(
    ("events", "states"),
    [
        pytest.param("", [], id="starts closed"),
        pytest.param("ff", [], id="below the threshold it stays closed"),
        pytest.param("fff", [OPEN], id="the threshold opens it"),
        pytest.param("ffsff", [], id="a success starts the count again"),
        pytest.param("ffaf", [OPEN], id="an abandoned use neither counts nor resets"),
        pytest.param("fffxx", [OPEN], id="an open breaker refuses"),
        pytest.param("fffpppx", [OPEN], id="a failed probe keeps it open"),
        pytest.param("fffP", [OPEN, HALF_OPEN], id="an answered probe half-opens it"),
        pytest.param("fffPs", [OPEN, HALF_OPEN, CLOSED], id="a successful trial closes it"),
        pytest.param("fffPfx", [OPEN, HALF_OPEN, OPEN], id="one failed trial opens it again"),
        pytest.param("fffPas", [OPEN, HALF_OPEN, CLOSED], id="an abandoned trial goes to the next caller"),
        pytest.param("fffPsff", [OPEN, HALF_OPEN, CLOSED], id="closed again it counts from nothing"),
        pytest.param("fffPsfff", [OPEN, HALF_OPEN, CLOSED, OPEN], id="closed again it can open again"),
    ],
)
def test_events_lead_through_the_states(events: str, states: list[BreakerState]) -> None:
    rig = Rig()
    rig.play(events)
    assert rig.states == states
    assert rig.breaker.state is (states[-1] if states else CLOSED)


def test_half_open_lets_one_trial_through_and_refuses_the_others() -> None:
    rig = Rig()
    rig.play("fffP")
    trial = rig.permit()
    rig.play("xx")
    rig.breaker.succeeded(trial)
    assert rig.breaker.state is CLOSED
    assert rig.breaker.admits


def test_uses_that_were_under_way_when_it_opened_change_nothing_any_more() -> None:
    rig = Rig()
    late = [rig.permit() for _ in range(5)]
    rig.play("fff")
    rig.breaker.succeeded(late[0])
    rig.breaker.failed(late[1])
    assert rig.states == [OPEN]
    rig.play("P")
    trial = rig.permit()
    rig.breaker.abandoned(late[2])
    rig.breaker.failed(late[3])
    rig.breaker.succeeded(late[4])
    assert rig.states == [OPEN, HALF_OPEN]
    assert not rig.breaker.admits
    rig.breaker.succeeded(trial)
    assert rig.states == [OPEN, HALF_OPEN, CLOSED]


def test_probes_back_off_by_doubling_up_to_their_bound() -> None:
    rig = Rig()
    rig.play("fff")
    delays = [rig.breaker.probe_delay]
    for _ in range(4):
        rig.now += rig.breaker.probe_delay
        rig.play("p")
        delays.append(rig.breaker.probe_delay)
    assert delays == [0.5, 1.0, 2.0, 4.0, 4.0]


def test_a_failed_trial_lengthens_the_wait_and_a_successful_one_resets_it() -> None:
    rig = Rig()
    rig.play("fffPf")
    assert rig.breaker.probe_delay == 1.0
    rig.play("Psfff")
    assert rig.breaker.probe_delay == 0.5


def test_a_refused_caller_is_told_when_the_next_probe_is_due() -> None:
    rig = Rig()
    rig.play("fffp")
    rig.now += 0.25
    assert rig.breaker.retry_delay == 0.75


@pytest.mark.parametrize(
    ("events", "later"),
    [
        pytest.param("fff", 0.6, id="while the probe is out"),
        pytest.param("fffP", 0.0, id="while half open"),
        pytest.param("f", 0.0, id="while closed"),
    ],
)
def test_without_a_next_probe_the_retry_delay_is_one_first_wait(events: str, later: float) -> None:
    rig = Rig()
    rig.play(events)
    rig.now += later
    assert rig.breaker.retry_delay == 0.5


@settings(max_examples=300)
@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from("tsfaPp+"), st.integers(0, 5)), max_size=60))
def test_whatever_happens_it_opens_only_by_failures_and_closes_only_by_a_trial(
    threshold: int, events: list[tuple[str, int]]
) -> None:
    rig = Rig(threshold)
    out: list[tuple[int, BreakerState]] = []
    trials = 0
    for event, index in events:
        before = rig.breaker.state
        permit, taken_in = out.pop(index % len(out)) if out and event in "sfa" else (None, CLOSED)
        match event:
            case "t":
                admits = rig.breaker.admits
                taken = rig.breaker.admit()
                assert (taken is not None) == admits
                assert admits or before is not CLOSED
                assert not (admits and before is OPEN)
                if taken is not None:
                    out.append((taken, before))
            case "s" if permit is not None:
                rig.breaker.succeeded(permit)
            case "f" if permit is not None:
                rig.breaker.failed(permit)
            case "a" if permit is not None:
                rig.breaker.abandoned(permit)
            case "P" if before is OPEN:
                rig.breaker.probe_answered()
            case "p" if before is OPEN:
                rig.breaker.probe_failed()
            case "+":
                rig.now += index
        after = rig.breaker.state
        if after is not before:
            assert (before, event, after) in {
                (CLOSED, "f", OPEN),
                (OPEN, "P", HALF_OPEN),
                (HALF_OPEN, "s", CLOSED),
                (HALF_OPEN, "f", OPEN),
            }
            assert taken_in is before or event == "P"
            trials = 0
        elif event == "t" and before is HALF_OPEN and taken is not None:
            trials += 1
        elif event == "a" and before is HALF_OPEN and taken_in is HALF_OPEN:
            trials = 0
        assert trials <= 1
        assert 0.0 <= rig.breaker.probe_delay <= 4.0
        assert 0.0 < rig.breaker.retry_delay <= 4.0
