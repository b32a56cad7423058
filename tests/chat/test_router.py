"""The circuits: every fault, every way back, with a clock made of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotpind.chat.backend import Probe
from hotpind.chat.router import (
    BAD_ANSWERS,
    NETWORK_PROBE_MOST_S,
    SERVER_PROBE_MOST_S,
    Change,
    Circuit,
    Router,
    State,
    phrase,
)
from hotpind.errors import (
    BackendError,
    BackendRateLimited,
    BackendTooLate,
    BackendUnreachable,
    BadAnswer,
    KeyRejected,
    ModelRetired,
    PayloadTooLarge,
    StreamBroke,
)

DOWN = BackendUnreachable("groq cannot be reached")
TROUBLE = BackendUnreachable("groq answers with HTTP 500", server_fault=True)
LATE = BackendTooLate("groq gave no first word within 2.5 s")
BROKE = StreamBroke("groq broke off")
GONE = ModelRetired("groq serves none", model="m")
BAD = BadAnswer("groq said nothing")
REJECTED = KeyRejected("groq rejected the API key")


def limited(seconds: float) -> BackendRateLimited:
    return BackendRateLimited("groq has had enough", retry_after=seconds)


def probe_times(circuit: Circuit, error: BackendError, *, count: int) -> list[float]:
    """Let every probe fail at once; return when they were due."""
    times = []
    for _ in range(count):
        at = circuit.wakes_at()
        assert at is not None
        assert not circuit.probe_due(at - 0.001)
        assert circuit.probe_due(at)
        circuit.probe_begun()
        assert circuit.wakes_at() is None
        circuit.probe_failed(error, at)
        times.append(at)
    return times


@pytest.mark.parametrize(("error", "state", "probe"), [
    (DOWN, State.OFFLINE, Probe.REACH), (BROKE, State.OFFLINE, Probe.REACH),
    (TROUBLE, State.DEGRADED, Probe.ANSWER), (LATE, State.DEGRADED, Probe.ANSWER), (GONE, State.DEGRADED, Probe.ANSWER),
    (limited(7), State.RATE_LIMITED, Probe.REACH), (REJECTED, State.KEY_REJECTED, Probe.REACH)])
def test_a_fault_opens_the_circuit_and_is_told_once(error: BackendError, state: State, probe: Probe) -> None:
    circuit = Circuit("groq")
    assert circuit.usable(100)
    assert circuit.failed(error, 100) == Change("groq", State.ONLINE, state, str(error))
    assert not circuit.usable(100)
    assert circuit.state is state
    assert circuit.detail == str(error)
    assert circuit.probe is probe
    assert circuit.failed(error, 101) is None


def test_probes_of_a_dead_line_grow_from_5_to_20_s() -> None:
    circuit = Circuit("groq")
    circuit.failed(DOWN, 0)
    assert probe_times(circuit, DOWN, count=6) == [5, 15, 35, 55, 75, 95]


@pytest.mark.parametrize("error", [TROUBLE, LATE])
def test_probes_of_a_service_in_trouble_grow_to_5_minutes(error: BackendError) -> None:
    circuit = Circuit("groq")
    circuit.failed(error, 0)
    times = probe_times(circuit, error, count=10)
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert gaps == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    assert gaps[-1] == SERVER_PROBE_MOST_S


def test_a_broken_stream_is_looked_into_at_once() -> None:
    circuit = Circuit("groq")
    circuit.failed(BROKE, 0)
    assert probe_times(circuit, DOWN, count=4) == [1, 6, 16, 36]


def test_late_because_the_cable_is_out_is_back_within_20_s_of_it() -> None:
    """The first sign of a pulled cable is lateness; the next probe finds out what it is."""
    circuit = Circuit("groq")
    circuit.failed(LATE, 0)
    times = probe_times(circuit, DOWN, count=8)
    assert circuit.state is State.OFFLINE
    assert max(later - earlier for earlier, later in pairwise(times)) <= NETWORK_PROBE_MOST_S
    assert circuit.probe is Probe.ANSWER, "only an answer proves that lateness is over"


def test_silence_to_a_simple_probe_is_the_lines_fault() -> None:
    circuit = Circuit("groq")
    circuit.failed(BROKE, 0)
    circuit.probe_begun()
    assert circuit.probe_failed(LATE, 6) is None
    assert circuit.state is State.OFFLINE
    assert circuit.probe is Probe.REACH


def test_a_good_probe_closes_the_circuit_and_forgets() -> None:
    circuit = Circuit("groq")
    circuit.failed(TROUBLE, 0)
    probe_times(circuit, TROUBLE, count=3)
    circuit.probe_begun()
    assert circuit.probe_succeeded() == Change("groq", State.DEGRADED, State.ONLINE, "")
    assert circuit.usable(0)
    assert (circuit.wakes_at(), circuit.detail, circuit.probe) == (None, "", Probe.REACH)
    circuit.failed(TROUBLE, 1000)
    assert probe_times(circuit, TROUBLE, count=1) == [1005], "the growth begins anew"


def test_an_interface_that_comes_up_is_probed_at_once() -> None:
    circuit = Circuit("groq")
    circuit.failed(DOWN, 0)
    probe_times(circuit, DOWN, count=4)
    circuit.interface_up(60)
    assert circuit.probe_due(60)
    assert probe_times(circuit, DOWN, count=3) == [60, 65, 75], "an address comes seconds after the link"


def test_an_interface_that_comes_up_during_a_probe_is_probed_after_it() -> None:
    circuit = Circuit("groq")
    circuit.failed(DOWN, 0)
    circuit.probe_begun()
    circuit.interface_up(6)
    assert not circuit.probe_due(6)
    circuit.probe_failed(DOWN, 7)
    assert circuit.probe_due(7)
    circuit.probe_begun()
    circuit.probe_failed(DOWN, 8)
    assert circuit.wakes_at() == 13


def test_an_interface_means_nothing_to_a_rejected_key_or_a_limit() -> None:
    for error in (REJECTED, limited(50)):
        circuit = Circuit("groq")
        circuit.failed(error, 0)
        circuit.interface_up(1)
        assert not circuit.probe_due(2)
        assert not circuit.usable(2)


def test_a_rate_limit_ends_when_the_service_said() -> None:
    circuit = Circuit("groq")
    circuit.failed(limited(7), 100)
    assert circuit.wakes_at() == 107
    assert not circuit.usable(106.9)
    assert circuit.tick(106.9) is None
    assert circuit.usable(107)
    assert not circuit.probe_due(107), "no probe: it would only use the limit up"
    assert circuit.tick(107) == Change("groq", State.RATE_LIMITED, State.ONLINE, "")


def test_an_answer_that_was_under_way_does_not_end_a_rate_limit() -> None:
    circuit = Circuit("groq")
    circuit.failed(limited(7), 100)
    assert circuit.answered() is None
    assert not circuit.usable(106)
    assert circuit.tick(107) == Change("groq", State.RATE_LIMITED, State.ONLINE, "")


@pytest.mark.parametrize("error", [DOWN, TROUBLE, LATE, BROKE, GONE])
def test_a_failure_that_was_under_way_does_not_end_a_rate_limit(error: BackendError) -> None:
    circuit = Circuit("groq")
    circuit.failed(limited(60), 100)
    assert circuit.failed(error, 101) is None
    circuit.failed(limited(5), 102)
    assert (circuit.state, circuit.wakes_at()) == (State.RATE_LIMITED, 160), "the longer limit holds"
    assert circuit.failed(error, 161) is not None, "after it everything counts again"


@pytest.mark.parametrize("error", [DOWN, TROUBLE, LATE, BROKE, GONE, limited(5), REJECTED])
def test_nothing_that_was_under_way_gives_a_rejected_key_another_chance(error: BackendError) -> None:
    circuit = Circuit("groq")
    circuit.failed(REJECTED, 0)
    assert circuit.failed(error, 1) is None
    assert circuit.answered() is None
    circuit.tick(1e6)
    assert circuit.state is State.KEY_REJECTED
    assert not circuit.usable(1e9)


def test_a_probe_may_find_a_limit_or_a_rejected_key() -> None:
    for error, state in ((limited(7), State.RATE_LIMITED), (REJECTED, State.KEY_REJECTED)):
        circuit = Circuit("groq")
        circuit.failed(TROUBLE, 0)
        circuit.probe_begun()
        change = circuit.probe_failed(error, 5)
        assert change is not None
        assert change.after is state
        assert not circuit.probe_due(1e9)


def test_a_rejected_key_stays_until_there_is_another() -> None:
    circuit = Circuit("groq")
    circuit.failed(REJECTED, 0)
    assert circuit.wakes_at() is None
    assert not circuit.usable(1e9)
    assert circuit.renewed(10, on=True, verify=True) == Change("groq", State.KEY_REJECTED, State.ONLINE, "")
    assert circuit.usable(10)
    assert circuit.probe_due(10)


def test_without_a_key_it_is_off_and_nothing_moves_it_but_a_key() -> None:
    circuit = Circuit("groq", on=False)
    assert not circuit.usable(0)
    for error in (DOWN, TROUBLE, LATE, REJECTED, limited(1), BAD):
        assert circuit.failed(error, 0) is None
    circuit.interface_up(1)
    circuit.tick(2)
    assert circuit.answered() is None
    assert circuit.state is State.OFF
    assert circuit.wakes_at() is None
    circuit.renewed(3, on=True, verify=False)
    assert circuit.usable(3)
    change = circuit.renewed(4, on=False, verify=True)
    assert change is not None
    assert change.after is State.OFF


def test_odd_answers_count_only_in_a_row() -> None:
    circuit = Circuit("groq")
    for _ in range(BAD_ANSWERS - 1):
        assert circuit.failed(BAD, 0) is None
        assert circuit.usable(0)
    circuit.answered()
    for _ in range(BAD_ANSWERS - 1):
        circuit.failed(BAD, 0)
    assert circuit.usable(0)
    circuit.failed(BAD, 0)
    assert circuit.state is State.DEGRADED


def test_only_an_answer_proves_that_answers_can_be_spoken() -> None:
    circuit = Circuit("groq")
    for _ in range(BAD_ANSWERS - 1):
        circuit.failed(BAD, 0)
        circuit.probe_begun()
        circuit.probe_succeeded()
    circuit.failed(BAD, 0)
    assert circuit.state is State.DEGRADED
    circuit.probe_begun()
    circuit.probe_succeeded()
    assert circuit.failed(BAD, 10) is None, "a probe for an answer begins the count anew"


def test_a_large_request_is_no_fault_of_the_backend() -> None:
    circuit = Circuit("groq")
    assert circuit.failed(PayloadTooLarge("too large"), 0) is None
    assert circuit.usable(0)


def test_a_fault_during_an_outage_does_not_delay_its_probes() -> None:
    circuit = Circuit("groq")
    circuit.failed(DOWN, 0)
    circuit.failed(DOWN, 4)
    circuit.failed(TROUBLE, 4.5)
    assert circuit.wakes_at() == 5
    circuit.failed(REJECTED, 4.6)
    assert circuit.state is State.KEY_REJECTED, "but a clear word counts"


def test_what_a_question_found_out_makes_an_older_probe_stale() -> None:
    circuit = Circuit("groq")
    epoch = circuit.epoch
    circuit.probe_begun()
    circuit.failed(DOWN, 1)
    assert circuit.epoch != epoch
    circuit.probe_dropped(2)
    assert circuit.wakes_at() == 6, "the schedule of the fault stands"
    circuit.probe_begun()
    circuit.probe_dropped(7)
    assert circuit.wakes_at() is not None, "an outage is never without a next probe"


def test_a_new_key_during_a_probe_is_probed_after_it() -> None:
    circuit = Circuit("groq")
    circuit.probe_begun()
    epoch = circuit.epoch
    circuit.renewed(1, on=True, verify=True)
    assert circuit.epoch != epoch
    circuit.probe_dropped(2)
    assert circuit.probe_due(2)


def test_the_router_keeps_the_order_and_tells_why() -> None:
    nas, groq, box = Circuit("nas"), Circuit("groq"), Circuit("box")
    router = Router([nas, groq, box])
    assert router.usable(0) == ["nas", "groq", "box"]
    assert router.reason(0) == ""
    groq.failed(DOWN, 0)
    assert router.usable(0) == ["nas", "box"]
    assert router.reason(0) == "", "the best is there"
    nas.failed(TROUBLE, 0)
    assert router.reason(0) == "nas is degraded"
    nas.renewed(0, on=False, verify=False)
    assert router.reason(0) == "groq is offline", "what is not set up is no reason"
    groq.failed(REJECTED, 0)
    assert router.reason(0) == "groq has its key rejected"
    assert router.wakes_at() is None
    box.failed(limited(9), 0)
    assert router.wakes_at() == 9
    assert [change.name for change in router.tick(9)] == ["box"]
    assert router.probes_due(100) == []
    box.failed(DOWN, 100)
    assert router.probes_due(105) == [box]


def test_nothing_set_up_is_no_reason() -> None:
    assert Router([Circuit("groq", on=False)]).reason(0) == ""
    assert Router([]).reason(0) == ""


def test_each_fault_has_a_phrase() -> None:
    phrases = {phrase("groq", error) for error in (DOWN, TROUBLE, LATE, GONE, BAD, REJECTED, limited(1),
                                                   PayloadTooLarge("x"))}
    assert len(phrases) == 8
    assert all(text.startswith("groq ") and len(text) < 50 for text in phrases)


ERRORS = st.one_of(st.sampled_from([DOWN, TROUBLE, LATE, BROKE, GONE, BAD, REJECTED, PayloadTooLarge("x")]),
                   st.floats(1, 3600).map(limited))


class CircuitMachine(RuleBasedStateMachine):
    """Anything in any order never leaves a circuit open without a way back."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit("groq")
        self.now = 0.0

    @rule(seconds=st.floats(0, 400))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.circuit.tick(self.now)

    @rule(error=ERRORS)
    def fail(self, error: BackendError) -> None:
        self.circuit.failed(error, self.now)

    @rule()
    def answer(self) -> None:
        before = self.circuit.state
        self.circuit.answered()
        if before in (State.OFF, State.KEY_REJECTED, State.RATE_LIMITED):
            assert self.circuit.state is before

    @precondition(lambda self: self.circuit.probe_due(self.now))
    @rule()
    def begin_probe(self) -> None:
        self.circuit.probe_begun()

    @precondition(lambda self: self.circuit.probing)
    @rule(error=st.one_of(st.none(), ERRORS), dropped=st.booleans())
    def end_probe(self, error: BackendError | None, dropped: bool) -> None:
        if dropped:
            self.circuit.probe_dropped(self.now)
        elif error is None:
            self.circuit.probe_succeeded()
        else:
            self.circuit.probe_failed(error, self.now)

    @rule()
    def interface(self) -> None:
        self.circuit.interface_up(self.now)

    @rule(on=st.booleans(), verify=st.booleans())
    def key(self, on: bool, verify: bool) -> None:
        self.circuit.renewed(self.now, on=on, verify=verify)

    @invariant()
    def there_is_a_way_back(self) -> None:
        if self.circuit.state in (State.OFFLINE, State.DEGRADED):
            at = self.circuit.wakes_at()
            assert self.circuit.probing or (at is not None and at <= self.now + SERVER_PROBE_MOST_S)
        if self.circuit.state is State.RATE_LIMITED:
            assert self.circuit.wakes_at() is not None

    @invariant()
    def usable_means_online(self) -> None:
        self.circuit.tick(self.now)
        assert self.circuit.usable(self.now) == (self.circuit.state is State.ONLINE)


CircuitMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_circuit_machine = CircuitMachine.TestCase
