"""The figures for Prometheus: which there are, and that no label grows with what devices do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

from hotpind.chat.messages import BackendStatus
from hotpind.conversation.turn import TurnRecord
from hotpind.engines.supervisor import Engine, EngineSpec
from hotpind.web.metrics import BACKENDS, OUTCOMES, STAGES, Metrics


async def _alive(_: Path) -> None:
    """Show no sign of death."""


def engine(name: str, restarts: int) -> Engine:
    made = Engine(EngineSpec(name, list, Path("/nowhere"), _alive))
    made.restarts = restarts
    return made


def watched() -> Metrics:
    metrics = Metrics()
    metrics.watch(
        devices=lambda: 3, turns_running=lambda: 2,
        queues={"stt": lambda: 4, "llm": lambda: 1, "tts": lambda: 0},
        backends=lambda: [BackendStatus("groq", "rate-limited"), BackendStatus("nas", "online"),
                          BackendStatus("local", "idle")],
        engines=[engine("speech-to-text", 1), engine("text-to-speech", 0)], underruns=lambda: 5)
    return metrics


def record(outcome: str = "answered", backend: str = "local", stages: Mapping[str, float] = MappingProxyType({})
           ) -> TurnRecord:
    return TurnRecord("t1", "kitchen", 0.0, outcome=outcome, backend=backend, answer_s=2.5, stages=dict(stages))


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Read the text as Prometheus does: figures by name and label values, these in the order of the labels' names."""
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(metrics.text().decode()) for sample in family.samples}


def test_a_turn_is_in_every_figure_that_tells_of_turns() -> None:
    metrics = watched()
    metrics.turn(record(stages={stage: 0.25 + number for number, stage in enumerate(STAGES)}))
    found = samples(metrics)
    for number, stage in enumerate(STAGES):
        assert found["hotpin_stage_seconds_count", stage] == 1
        assert found["hotpin_stage_seconds_sum", stage] == 0.25 + number
    heard = 0.25 + STAGES.index("first_audio")
    assert found["hotpin_time_to_first_audio_seconds_sum",] == heard
    assert found["hotpin_time_to_first_audio_seconds_bucket", "2.5"] == 0
    assert found["hotpin_time_to_first_audio_seconds_bucket", "5.0"] == 1
    assert found["hotpin_turns_total", "local", "answered"] == 1
    assert found["hotpin_answer_audio_seconds_total",] == 2.5


def test_what_the_parts_know_of_themselves_is_read_when_asked() -> None:
    found = samples(watched())
    assert found["hotpin_devices_connected",] == 3
    assert found["hotpin_turns_running",] == 2
    assert [found["hotpin_queue_depth", name] for name in ("stt", "llm", "tts")] == [4, 1, 0]
    assert [found["hotpin_backend_online", name] for name in ("groq", "nas", "local")] == [0, 1, 1]
    assert found["hotpin_engine_restarts_total", "speech-to-text"] == 1
    assert found["hotpin_engine_restarts_total", "text-to-speech"] == 0
    assert found["hotpin_playback_underruns_total",] == 5


def test_a_turn_that_never_spoke_counts_by_its_outcome_only() -> None:
    metrics = watched()
    metrics.turn(record("not-understood", "", {"transcript": 0.1}))
    found = samples(metrics)
    assert found["hotpin_turns_total", "none", "not-understood"] == 1
    assert found["hotpin_time_to_first_audio_seconds_count",] == 0
    assert ("hotpin_stage_seconds_count", "first_audio") not in found


def test_a_prepared_sentence_does_not_make_answers_look_quick() -> None:
    metrics = watched()
    metrics.turn(record("busy", "", {"transcript": 0.0, "first_audio": 0.01}))
    found = samples(metrics)
    assert found["hotpin_turns_total", "none", "busy"] == 1
    assert found["hotpin_time_to_first_audio_seconds_count",] == 0


def test_odd_names_make_no_labels_of_their_own() -> None:
    metrics = watched()
    for number in range(50):
        metrics.turn(record(f"outcome {number}", f"server {number}", {f"stage {number}": 1.0}))
    for outcome in OUTCOMES:
        for backend in (*BACKENDS, "mine", ""):
            metrics.turn(record(outcome, backend, {"first_audio": 0.3}))
    turns = {key for key in samples(metrics) if key[0] == "hotpin_turns_total"}
    assert len(turns) == 1 + len(OUTCOMES) * (len(BACKENDS) + 2)
    assert samples(metrics)["hotpin_turns_total", "other", "other"] == 50
    text = metrics.text().decode()
    for private in ("kitchen", "t1", "server 1", "outcome 1", "stage 1"):
        assert private not in text
