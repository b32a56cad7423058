"""Turns a benchmark's report into a timeline."""

from __future__ import annotations

from hotpind.bench.report import Report
from hotpind.bench.sample import SPANS, median_turn
from hotpind.bench.timeline import Bar, Timeline

COLOURS = {"transcript": "#0072b2", "first_token": "#e69f00", "first_clause": "#d55e00",
           "first_audio_ready": "#009e73", "first_audio": "#8a8a94"}
"""Told apart by colour-blind people too (Okabe and Ito's palette)."""
SPEECH, SILENCE, ANSWER = "#b9b9c2", "#e4e4ea", "#cc79a7"


def timeline(report: Report) -> Timeline | None:
    """Draw the turn in the middle of all, with the slow ones' ends beside it; None when no turn was answered."""
    turn, first_audio = median_turn(report.outcome.samples), report.first_audio
    if turn is None or first_audio is None:
        return None
    tail, sound = report.plan.tail_silence_s, turn.first_audio or 0.0
    bars = [Bar("Question", -tail - 0.25 * max(sound, 0.4), -tail, SPEECH, open_start=True)]
    if tail:
        bars.append(Bar("Silence", -tail, 0.0, SILENCE, f"{tail:.2f}"))
    at = 0.0
    for mark, label in SPANS.items():
        if mark not in turn.spans:
            continue
        ends = report.first_audio if mark == "first_audio" else report.at(mark)
        took = report.took(mark)
        note = "" if took is None else f"{took.p50:.3f} / {took.p95:.3f}"
        bars.append(Bar(label, at, at + turn.spans[mark], COLOURS[mark], note, ends.p95 if ends else None))
        at += turn.spans[mark]
    bars.append(Bar("Answer", sound, sound + 0.35 * max(sound, 0.4), ANSWER, open_end=True))
    if report.floor is not None:
        alone = report.floor.of("after_speech")
        bars.append(Bar("Engines alone", 0.0, alone.p50, "#56b4e9", f"{alone.p50:.3f} / {alone.p95:.3f}", alone.p95))
    cloud = "" if report.cloud_s is None else f", stand-in for the cloud ({report.cloud_s:g} s to its first word)"
    return Timeline(
        f"First sound {first_audio.p50:.2f} s after the end of speech (p95 {first_audio.p95:.2f} s)",
        f"{report.machine.model}, {report.machine.cores} cores; {report.plan.devices} device"
        f"{'s' if report.plan.devices > 1 else ''}, {first_audio.count} turns{cloud}",
        "step p50 / p95, s", bars,
        f"The median turn; the whiskers end where a step ends in the slowest turn of twenty. hotpinctl bench, "
        f"{report.when:%Y-%m-%d}.")
