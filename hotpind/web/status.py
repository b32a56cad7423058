"""What is told about the appliance: to everybody, to its administrator, and in one line to systemd."""

from __future__ import annotations

import logging
import resource
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from hotpind import __version__
from hotpind.chat.messages import BackendStatus
from hotpind.conversation.turn import TurnRecord
from hotpind.engines.remote import RemoteServer
from hotpind.engines.supervisor import Engine, EngineState
from hotpind.system.findings import FAULT_MARK
from hotpind.system.logs import TURN_STAGE, fields

_LOG = logging.getLogger(__name__)

KEPT_TURNS = 10
"""Turn records kept for debugging; they hold no text."""


class Status:
    """Gathers the condition of all parts."""

    def __init__(self, *, engines: Sequence[Engine], servers: Sequence[RemoteServer] = (),
                 backends: Callable[[], list[BackendStatus]], devices: Callable[[], list[str]],
                 faults: Callable[[], list[str]], facts: Callable[[], dict[str, Any]],
                 activity: Callable[[], str] = str, network: Callable[[], bool] = lambda: True,
                 clock: Callable[[], float] = time.monotonic) -> None:
        """Ask these when somebody wants to know."""
        self.last_turns: deque[TurnRecord] = deque(maxlen=KEPT_TURNS)
        self.turns = 0
        self.ready = False
        self._engines = engines
        self._servers = servers
        self._backends = backends
        self._devices = devices
        self._faults = faults
        self._facts = facts
        self._activity = activity
        self._network = network
        self._clock = clock
        self._started = clock()

    def turn(self, record: TurnRecord) -> None:
        """Remember a turn."""
        self.turns += 1
        self.last_turns.append(record)

    @property
    def cloud(self) -> str:
        """Online when a backend beyond this machine answers, offline when one should, local when there is none."""
        remote = [backend for backend in self._backends() if backend.name != "local" and backend.state != "off"]
        if not remote:
            return "local"
        return "online" if any(backend.state == "online" for backend in remote) else "offline"

    def health(self) -> dict[str, Any]:
        """Return what everybody may know: cheap, nothing private."""
        return {"status": "ok" if self.ready else "starting", "version": __version__, "brain": self.cloud}

    def condition(self) -> dict[str, Any]:
        """Return what a device is told when it connects."""
        return {"protocol": 2, "brain": self.cloud}

    def faults(self) -> list[str]:
        """Return what a person should mend, a sentence each."""
        broken = [f"the {engine.spec.name} engine: {engine.detail}" for engine in self._engines
                  if engine.state in {EngineState.UNUSABLE, EngineState.WAITING} and engine.detail]
        return [*broken, *self._faults()]

    def line(self) -> str:
        """Return one line for `systemctl status`."""
        activity, faults = self._activity(), self.faults()
        if not self.ready:
            return activity or (faults[0] if faults else "loading models")
        devices = len(self._devices())
        parts = [self.cloud, f"{devices} device{'s' if devices != 1 else ''}"]
        if not self._network():
            parts.append("no network for pins")
        last = next((turn for turn in reversed(self.last_turns) if "first_audio" in turn.stages), None)
        if last:
            parts.append(f"last answer after {last.stages['first_audio']:.2f} s")
        if activity:
            parts.append(activity)
        if faults:
            parts.append(FAULT_MARK + faults[0])
        return ", ".join(parts)

    def full(self) -> dict[str, Any]:
        """Return everything for `hotpinctl status`."""
        return {
            "version": __version__, "ready": self.ready, "uptime_s": round(self._clock() - self._started),
            "brain": self.cloud, "faults": self.faults(), "activity": self._activity(),
            "engines": [{"name": engine.spec.name, "state": engine.state.value, "detail": engine.detail,
                         "restarts": engine.restarts, "pid": engine.pid} for engine in self._engines],
            "speech_servers": [{"name": server.name, "uri": server.uri, "state": server.state}
                               for server in self._servers],
            "backends": [asdict(backend) for backend in self._backends()],
            "devices": self._devices(), "turns": self.turns,
            "last_turn": self.turn_json(self.last_turns[-1]) if self.last_turns else None,
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            **self._facts(),
        }

    def turns_json(self) -> list[dict[str, Any]]:
        """Return the last turns, oldest first."""
        return [self.turn_json(record) for record in self.last_turns]

    def turn_json(self, record: TurnRecord) -> dict[str, Any]:
        """Return a turn's record with its age in seconds in place of a point on the monotonic clock."""
        data = asdict(record)
        data["age_s"] = round(self._clock() - data.pop("began"), 1)
        data["answer_s"] = round(record.answer_s, 2)
        return data


def log_turn(record: TurnRecord) -> None:
    """Write the one line that a turn leaves in the log; it holds no text."""
    stages = " ".join(f"{stage}={seconds:.3f}" for stage, seconds in record.stages.items())
    because = f" ({record.reason})" if record.reason else ""
    _LOG.info("turn %s %s by %s%s %s", record.turn, record.outcome, record.backend or "nobody", because, stages,
              extra=fields(turn=record.turn, device=record.device, stage=TURN_STAGE, **{
                  "outcome": record.outcome, "backend": record.backend,
                  **{f"{name}_ms": str(round(seconds * 1000)) for name, seconds in record.stages.items()}}))
