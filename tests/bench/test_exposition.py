from __future__ import annotations

import math

import pytest

from hotpind.bench.exposition import Buckets, read_figures
from hotpind.conversation.turn import TurnRecord
from hotpind.errors import HotpinError
from hotpind.web.metrics import Metrics


def metrics_after(*turns: tuple[str, str, float]) -> Metrics:
    metrics = Metrics()
    metrics.gauge("hotpin_queue_depth", "Waiting.", lambda: {"stt": 2.0, "tts": 0.0}, "engine")
    metrics.counter("hotpin_playback_underruns", "Gaps.", lambda: {"": 3.0})
    for outcome, backend, first_audio in turns:
        record = TurnRecord("t", "pin", 0.0, outcome=outcome, backend=backend, answer_s=2.5)
        record.stages = {"transcript": first_audio / 2, "first_audio": first_audio}
        metrics.turn(record)
    return metrics


def test_reads_what_the_appliance_writes() -> None:
    figures = read_figures(metrics_after(("answered", "local", 0.22), ("answered", "groq", 0.27),
                                         ("answered", "local", 0.28), ("cancelled", "", 0.9)).text().decode())
    assert figures.value("hotpin_turns_total", outcome="answered", backend="local") == 2
    assert figures.by_label("hotpin_turns_total", "outcome") == {"answered": 3, "cancelled": 1}
    assert figures.by_label("hotpin_queue_depth", "engine") == {"stt": 2, "tts": 0}
    assert figures.value("hotpin_playback_underruns_total") == 3
    assert figures.value("hotpin_answer_audio_seconds_total") == 10
    first_audio = figures.histogram("hotpin_time_to_first_audio_seconds")
    assert first_audio.count == 4
    # Two of four lie in the bucket up to 0.3 s, which begins with the second.
    assert first_audio.quantile(0.5) == pytest.approx(0.275)
    assert figures.histogram("hotpin_stage_seconds", stage="transcript").count == 4
    assert figures.histogram("hotpin_stage_seconds", stage="complete").count == 0
    assert figures.value("no_such_figure") == 0


def test_what_happened_between_two_looks() -> None:
    turns = [("answered", "local", 0.22)] * 5
    before = read_figures(metrics_after(*turns).text().decode())
    after = read_figures(metrics_after(*turns, ("answered", "local", 0.9)).text().decode())
    name = "hotpin_time_to_first_audio_seconds"
    recent = after.histogram(name).since(before.histogram(name))
    assert recent.count == 1
    assert 0.75 <= (recent.quantile(0.5) or 0) <= 1.0
    # After a restart the counts are smaller, and all of them are new.
    assert before.histogram(name).since(after.histogram(name)).count == 5


def test_quantiles_at_the_edges() -> None:
    buckets = Buckets({0.1: 0.0, 0.2: 10.0, math.inf: 20.0})
    assert buckets.quantile(0.25) == pytest.approx(0.15)
    assert buckets.quantile(0.5) == pytest.approx(0.2)
    assert buckets.quantile(0.99) == 0.2
    assert Buckets().quantile(0.5) is None


def test_something_else_is_one_sentence() -> None:
    with pytest.raises(HotpinError, match="not in Prometheus' text format"):
        read_figures("{\"message\": \"not found\"}")
