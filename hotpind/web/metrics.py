"""The appliance's figures for Prometheus. No label has unbounded values: no device, no turn id, no text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hotpind.chat.messages import BackendStatus
from hotpind.conversation.turn import TurnRecord
from hotpind.engines.supervisor import Engine

BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
STAGES = ("transcript", "first_token", "first_clause", "first_audio_ready", "first_audio", "complete")
OUTCOMES = frozenset({"answered", "not-understood", "busy", "canned", "failed", "cancelled"})
BACKENDS = frozenset({"groq", "local"})

USABLE = frozenset({"online", "idle"})
"""States of a backend that is asked; an idle local model is loaded first."""

Reading = Callable[[], dict[str, float]]


class Metrics:
    """Collects turns as they end, and asks for everything else when it is scraped."""

    def __init__(self) -> None:
        """Begin with a registry of its own."""
        self.registry = CollectorRegistry()
        self._stages = Histogram("hotpin_stage_seconds",
                                 "Seconds from the end of speech until a stage of an answered turn was done.",
                                 ["stage"], buckets=BUCKETS, registry=self.registry)
        self._first_audio = Histogram("hotpin_time_to_first_audio_seconds",
                                      "Seconds from the end of speech to the first audio byte of an answer.",
                                      buckets=BUCKETS, registry=self.registry)
        self._turns = Counter("hotpin_turns", "Turns by outcome and by what answered.", ["outcome", "backend"],
                              registry=self.registry)
        self._answer = Counter("hotpin_answer_audio_seconds", "Seconds of audio answered.", registry=self.registry)

    def turn(self, record: TurnRecord) -> None:
        """Count a turn that has ended."""
        backend = record.backend if record.backend in BACKENDS else "other" if record.backend else "none"
        outcome = record.outcome if record.outcome in OUTCOMES else "other"
        self._turns.labels(outcome, backend).inc()
        self._answer.inc(record.answer_s)
        if outcome not in {"answered", "cancelled"}:
            # A prepared sentence is there at once, and a broken turn late: neither tells how fast answers are.
            return
        for stage in STAGES:
            if stage in record.stages:
                self._stages.labels(stage).observe(record.stages[stage])
        if "first_audio" in record.stages:
            self._first_audio.observe(record.stages["first_audio"])

    def watch(self, *, devices: Callable[[], int], turns_running: Callable[[], int],
              queues: Mapping[str, Callable[[], int]], backends: Callable[[], Sequence[BackendStatus]],
              engines: Sequence[Engine], underruns: Callable[[], int]) -> None:
        """Add what the parts of the appliance know of themselves; once."""
        self.gauge("hotpin_devices_connected", "Devices connected now.", lambda: {"": float(devices())})
        self.gauge("hotpin_turns_running", "Turns under way.", lambda: {"": float(turns_running())})
        self.gauge("hotpin_tasks", "Tasks of the daemon's event loop; no more at rest than before the turns.",
                   lambda: {"": float(_tasks())})
        self.gauge("hotpin_queue_depth", "Requests waiting for an engine, or for a first word of a language model.",
                   lambda: {name: float(waiting()) for name, waiting in queues.items()}, "engine")
        self.gauge("hotpin_backend_online", "1 for a backend that is asked.",
                   lambda: {each.name: float(each.state in USABLE) for each in backends()}, "backend")
        self.counter("hotpin_engine_restarts", "Times an engine had to be started again.",
                     lambda: {engine.spec.name: float(engine.restarts) for engine in engines}, "engine")
        self.counter("hotpin_playback_underruns", "Times playback ran dry because audio came late.",
                     lambda: {"": float(underruns())})

    def gauge(self, name: str, text: str, reading: Reading, label: str = "") -> None:
        """Add a figure that is read when scraped: by label value, or one under the empty label."""
        self.registry.register(_Reader(name, text, reading, label, counter=False))

    def counter(self, name: str, text: str, reading: Reading, label: str = "") -> None:
        """Add a count that is kept elsewhere."""
        self.registry.register(_Reader(name, text, reading, label, counter=True))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0  # no loop runs here


class _Reader(Collector):
    def __init__(self, name: str, text: str, reading: Reading, label: str, *, counter: bool) -> None:
        self._name, self._text, self._reading, self._label, self._counter = name, text, reading, label, counter

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily if self._counter else GaugeMetricFamily
        metric = family(self._name, self._text, labels=[self._label] if self._label else [])
        for value, number in self._reading().items():
            metric.add_metric([value] if self._label else [], number)
        yield metric

    def describe(self) -> Iterable[Metric]:
        return []
