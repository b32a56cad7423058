"""Which backends may be asked now: one circuit per backend, without I/O and without a clock of its own.

A circuit opens at a fault and is closed again by a probe in the background, never by a person's question:

| fault | state | next probe |
| --- | --- | --- |
| name, connection, TLS | offline | after 5 s, growing to 20 s, and at once when a network interface comes up |
| a stream that broke off | offline | after 1 s, then as above |
| 5xx, 498, late, no model left | degraded | after 5 s, growing to 5 min |
| answers that cannot be spoken, three in a row | degraded | as above |
| 429 | rate-limited | none: usable again when the service said |
| 401, 403 | key-rejected | none: usable again when the key changes |
| 401, 403 of a server that was given no key | degraded | after 5 s, growing to 5 min |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from hotpind.chat.backend import Probe
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

FIRST_PROBE_S = 5.0
"""Most outages of a home network (a router that restarts, Wi-Fi roaming) are seconds long."""
NETWORK_PROBE_MOST_S = 20.0
"""The cloud has to be back within 30 s of the cable; a probe on a dead line costs nothing."""
SERVER_PROBE_MOST_S = 300.0
"""A service in trouble is not helped by being asked, and every question to it counts."""
BROKEN_PROBE_S = 1.0
"""A stream that broke says little: the next question should find out whether the line is there."""
BAD_ANSWERS = 3
"""One odd answer is the model's mood; this many in a row are a fault."""


class State(StrEnum):
    """A backend's condition."""

    ONLINE = "online"
    DEGRADED = "degraded"
    """It is there, but does not answer properly or in time."""
    OFFLINE = "offline"
    KEY_REJECTED = "key-rejected"
    RATE_LIMITED = "rate-limited"
    OFF = "off"
    """Not set up, such as a cloud without a key."""


@dataclass(frozen=True, slots=True)
class Change:
    """A backend's state changed; worth one line in the log."""

    name: str
    before: State
    after: State
    detail: str


class Circuit:
    """The condition of one backend."""

    def __init__(self, name: str, *, on: bool = True) -> None:
        """Begin usable: the first question may find out that it is not. ``on=False``: not set up."""
        self.name = name
        self.state = State.ONLINE if on else State.OFF
        self.detail = ""
        self.probing = False
        self.probe = Probe.REACH
        self.epoch = 0
        """Counts what became known of the backend; a probe begun in another epoch tells nothing new."""
        self._probe_at: float | None = None
        self._delay = 0.0
        self._again = False
        self._bad = 0
        self._free_at = 0.0

    def usable(self, now: float) -> bool:
        """Whether a person's question may be sent to it."""
        return self.state is State.ONLINE or (self.state is State.RATE_LIMITED and now >= self._free_at)

    def wakes_at(self) -> float | None:
        """When something is due: a probe, or the end of a rate limit; None when nothing is."""
        if self.state is State.RATE_LIMITED:
            return self._free_at
        return None if self.probing else self._probe_at

    def probe_due(self, now: float) -> bool:
        """Whether a probe should be begun; `probe` tells which."""
        return not self.probing and self._probe_at is not None and now >= self._probe_at

    def probe_begun(self) -> None:
        """Note that a probe is under way."""
        self.probing, self._again = True, False
        self._probe_at = None

    def tick(self, now: float) -> Change | None:
        """Note that time has passed: a rate limit may have ended."""
        if self.state is State.RATE_LIMITED and now >= self._free_at:
            return self._close()
        return None

    def answered(self) -> Change | None:
        """Note that the backend spoke in time."""
        self._bad = 0
        if self.state in (State.OFF, State.RATE_LIMITED, State.KEY_REJECTED):
            # A question that was under way before says nothing about a limit, whose end comes with time, nor about a
            # key, for which there has to be another one.
            return None
        return self._close()

    def failed(self, error: BackendError, now: float) -> Change | None:
        """Note that the backend failed a question."""
        if self.state is State.OFF or isinstance(error, PayloadTooLarge):
            return None
        if isinstance(error, BadAnswer):
            self._bad += 1
            if self._bad < BAD_ANSWERS:
                return None
        if self.state is State.KEY_REJECTED:
            return None  # only another key changes that, whatever a question ends in that was under way
        # Of a question that was under way before only a clear word counts: else what the service said of a limit
        # holds, and the schedule of the probes goes on.
        known = self.state in (State.OFFLINE, State.DEGRADED) or (
            self.state is State.RATE_LIMITED and now < self._free_at)
        if known and not isinstance(error, KeyRejected | BackendRateLimited):
            return None
        first = BROKEN_PROBE_S if isinstance(error, StreamBroke) else FIRST_PROBE_S
        return self._open(error, now, first=first)

    def probe_succeeded(self) -> Change | None:
        """Note that the probe under way found the backend well."""
        self.probing = False
        if self.probe is Probe.ANSWER:
            # That a list of models comes says nothing about the answers.
            self._bad = 0
        if self.state not in (State.OFFLINE, State.DEGRADED):
            return None
        return self._close()

    def probe_failed(self, error: BackendError, now: float) -> Change | None:
        """Note that the probe under way found the backend still unwell."""
        self.probing = False
        if self.state is State.OFF:
            return None
        if self.probe is Probe.REACH and isinstance(error, BackendTooLate):
            # Even the list of models did not come: that is the line, not the service's thinking.
            error = BackendUnreachable(str(error))
        if self._again:
            return self._open(error, now, first=0.0)
        return self._open(error, now, first=max(FIRST_PROBE_S, self._delay * 2))

    def probe_dropped(self, now: float) -> None:
        """Note that the probe under way was given up, or that its result no longer matters."""
        self.probing = False
        if self._probe_at is None and self.state in (State.OFFLINE, State.DEGRADED):
            self._probe_at = now + max(FIRST_PROBE_S, self._delay)

    def interface_up(self, now: float) -> None:
        """Note that a network interface came up: what was out of reach may be in reach again."""
        if self.state in (State.OFFLINE, State.DEGRADED):
            self._delay = 0.0
            self._probe_at = now
            self._again = self.probing

    def renewed(self, now: float, *, on: bool, verify: bool) -> Change | None:
        """Note that its key changed (``on``: there is one now), so what was known of it is void.

        With ``verify`` a probe is due at once.
        """
        before = self.state
        self.state = State.ONLINE if on else State.OFF
        self.detail = ""
        self.epoch += 1
        self._bad, self._delay, self._again = 0, 0.0, False
        self.probe = Probe.REACH
        self._probe_at = now if on and verify else None
        return None if self.state is before else Change(self.name, before, self.state, "")

    def _close(self) -> Change | None:
        before, self.state, self.detail = self.state, State.ONLINE, ""
        self.epoch += before is not State.ONLINE
        self._probe_at, self._delay, self.probe = None, 0.0, Probe.REACH
        return None if before is State.ONLINE else Change(self.name, before, State.ONLINE, "")

    def _open(self, error: BackendError, now: float, *, first: float) -> Change | None:
        before = self.state
        self.state, most = _condition(error)
        self.epoch += self.state is not before
        self.detail = str(error)
        if self.state is State.RATE_LIMITED and isinstance(error, BackendRateLimited):
            still = self._free_at if before is State.RATE_LIMITED else 0.0
            self._free_at = max(still, now + error.retry_after)
        if most is None:
            self._probe_at, self._delay = None, 0.0
        else:
            self._delay = min(first, most)
            self._probe_at = now + self._delay
            if self.state is State.DEGRADED:
                # A list of models comes quickly even from a service that cannot think; once that was the
                # trouble, only a thought proves that it is over.
                self.probe = Probe.ANSWER
        return None if self.state is before else Change(self.name, before, self.state, self.detail)


def _condition(error: BackendError) -> tuple[State, float | None]:
    """Return the state an error leads to, and the longest time between probes in seconds (None: no
    probes).
    """
    if isinstance(error, KeyRejected):
        return State.KEY_REJECTED, None
    if isinstance(error, BackendRateLimited):
        return State.RATE_LIMITED, None
    if isinstance(error, StreamBroke) or (isinstance(error, BackendUnreachable) and not error.server_fault):
        return State.OFFLINE, NETWORK_PROBE_MOST_S
    return State.DEGRADED, SERVER_PROBE_MOST_S


def phrase(name: str, error: BackendError) -> str:
    """Return one short phrase that tells why ``name`` did not answer."""
    if isinstance(error, BackendTooLate):
        return f"{name} was late"
    if isinstance(error, KeyRejected):
        return f"{name} rejected the key"
    if isinstance(error, BackendRateLimited):
        return f"{name} is rate-limited"
    if isinstance(error, ModelRetired):
        return f"{name} has no model left"
    if isinstance(error, PayloadTooLarge):
        return f"{name} found the request too large"
    if isinstance(error, BadAnswer):
        return f"{name} gave no usable answer"
    if isinstance(error, BackendUnreachable) and not error.server_fault:
        return f"{name} cannot be reached"
    return f"{name} is in trouble"


class Router:
    """The circuits of a chain's backends, in the chain's order."""

    def __init__(self, circuits: Sequence[Circuit]) -> None:
        self.circuits = {circuit.name: circuit for circuit in circuits}

    def usable(self, now: float) -> list[str]:
        """Return the names of the backends that may be asked, best first."""
        return [name for name, circuit in self.circuits.items() if circuit.usable(now)]

    def reason(self, now: float) -> str:
        """Return why the best backend is passed over, as one short phrase; empty when it is not."""
        for name, circuit in self.circuits.items():
            if circuit.state is State.OFF:
                continue
            if circuit.usable(now):
                return ""
            verb = "has its" if circuit.state is State.KEY_REJECTED else "is"
            state = "key rejected" if circuit.state is State.KEY_REJECTED else circuit.state.value
            return f"{name} {verb} {state}"
        return ""

    def wakes_at(self) -> float | None:
        """Return when the next thing is due; None when nothing is."""
        times = [at for circuit in self.circuits.values() if (at := circuit.wakes_at()) is not None]
        return min(times) if times else None

    def tick(self, now: float) -> list[Change]:
        """Note that time has passed."""
        return [change for circuit in self.circuits.values() if (change := circuit.tick(now))]

    def probes_due(self, now: float) -> list[Circuit]:
        """Return the circuits whose probe should be begun."""
        return [circuit for circuit in self.circuits.values() if circuit.probe_due(now)]

    def interface_up(self, now: float) -> None:
        """Note that a network interface came up."""
        for circuit in self.circuits.values():
            circuit.interface_up(now)
