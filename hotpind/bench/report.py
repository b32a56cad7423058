"""What a benchmark found: as JSON and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hotpind import __version__
from hotpind.bench.drive import Outcome, Plan
from hotpind.bench.floor import Floor
from hotpind.bench.recordings import Recording
from hotpind.bench.sample import MARKS, SPANS
from hotpind.bench.spread import Spread, spread
from hotpind.config import Config
from hotpind.system.machine import Machine

READY_S = 0.05
"""A transcript that is there this soon after the end of speech was made before it."""
ROBBED = 0.01
"""Part of the cores' time taken by a virtual machine's host above which its bursts may make the slowest turns."""
CROWDED = 0.5
"""Load for each core above which somebody else's work spoils the numbers."""


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark that was carried out."""

    when: datetime
    command: str
    machine: Machine
    load: float
    """Processes that wanted to run just before (the one minute average)."""
    config: Config
    own: bool
    """The appliance was started for the benchmark, with the settings in ``config``."""
    plan: Plan
    said: Sequence[Recording]
    cloud_s: float | None
    """Seconds to the stand-in's first word, when it took the cloud's place."""
    outcome: Outcome
    floor: Floor | None

    @property
    def failed(self) -> int:
        """Turns without an answer."""
        return sum(not sample.answered for sample in self.outcome.samples)

    @property
    def first_audio(self) -> Spread | None:
        """Seconds from the end of speech to the first sound at the pin."""
        return spread(sample.first_audio for sample in self.outcome.samples if sample.first_audio is not None)

    @property
    def complete(self) -> Spread | None:
        """Seconds from the end of speech to the end of the turn."""
        return spread(each.complete for each in self.outcome.samples if each.answered and each.complete is not None)

    def at(self, mark: str) -> Spread | None:
        """Seconds after the end of speech of one of the appliance's marks."""
        return spread(each.marks[mark] for each in self.outcome.samples if each.answered and mark in each.marks)

    def took(self, mark: str) -> Spread | None:
        """Seconds spent up to a mark since the one before; see `hotpind.bench.sample.Sample.spans`."""
        return spread(each.spans[mark] for each in self.outcome.samples if mark in each.spans)

    @property
    def by_recording(self) -> dict[str, Spread]:
        """Seconds to the first sound for each recording: a hard one shows in the percentiles of all."""
        spreads = {each.name: spread(sample.first_audio for sample in self.outcome.samples
                                     if sample.recording == each.name and sample.first_audio is not None)
                   for each in self.said}
        return {name: found for name, found in spreads.items() if found is not None}

    @property
    def crowded(self) -> bool:
        """Others were at work on this machine."""
        return self.load > CROWDED * self.machine.cores

    @property
    def stolen(self) -> float:
        """Part of all cores' time that the host of this virtual machine gave to others."""
        return self.outcome.stolen_s / max(self.outcome.wall_s * self.machine.cores, 1e-9)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values: times in seconds, memory in bytes."""
        outcome, tally, answered = self.outcome, self.outcome.tally, len(self.outcome.samples) - self.failed
        backends = Counter(sample.backend or "none" for sample in outcome.samples if sample.answered)
        return {
            "when": self.when.astimezone(UTC).isoformat(timespec="seconds"), "version": __version__,
            "command": self.command,
            "machine": {**asdict(self.machine), "load_before": round(self.load, 2), "crowded": self.crowded,
                        "stolen": round(self.stolen, 5)},
            "appliance": {"own": self.own, **({} if not self.own else {
                "stt": self.config.stt.model, "voice": self.config.tts.voice, "llm": self.config.chat.local.model,
                "threads": {"stt": self.config.stt.threads, "tts": self.config.tts.threads,
                            "llm": self.config.chat.local.threads}})},
            "plan": {"devices": self.plan.devices, "turns": self.plan.turns, "warm_up": self.plan.warm_up,
                     "tail_silence_s": self.plan.tail_silence_s, "pause_s": self.plan.pause_s,
                     "spread_s": self.plan.spread_s, "realtime": self.plan.realtime, "fresh": self.plan.fresh,
                     "picture_bytes": len(self.plan.picture), "cloud_first_word_s": self.cloud_s,
                     "recordings": [{"name": each.name, "seconds": round(each.seconds, 2)} for each in self.said]},
            "turns": {"wanted": self.plan.devices * self.plan.turns, "answered": answered, "failed": self.failed,
                      "backends": dict(backends),
                      "with_picture": sum(sample.has_image for sample in outcome.samples),
                      "transcript_ready": sum(sample.marks.get("transcript", 1.0) < READY_S
                                              for sample in outcome.samples if sample.answered)},
            "first_audio": _json(self.first_audio), "complete": _json(self.complete),
            "by_recording": {name: found.as_json() for name, found in self.by_recording.items()},
            "at": {mark: _json(self.at(mark)) for mark in MARKS},
            "took": {mark: _json(self.took(mark)) for mark in SPANS},
            "acknowledgement": tally.stage("ack"),
            "playback": {"underruns": tally.underruns, "underrun_s": round(tally.underrun_s, 4),
                         "lost_bytes": tally.lost_bytes, "most_ahead_s": round(tally.most_ahead_s, 3)},
            "cpu": {"per_turn_s": {name: round(seconds / max(1, len(outcome.samples)), 4)
                                   for name, seconds in outcome.cpu_s.items()},
                    "per_turn_total_s": round(sum(outcome.cpu_s.values()) / max(1, len(outcome.samples)), 4),
                    "share_of_a_core": round(sum(outcome.cpu_s.values()) / max(outcome.wall_s, 1e-9), 4)},
            "memory": {"peak_pss": outcome.memory.each, "peak_pss_total": outcome.memory.total},
            "idle": None if not self.plan.idle_s else {
                "seconds": self.plan.idle_s, "percent_of_a_core": {
                    name: round(100 * seconds / self.plan.idle_s, 3) for name, seconds in outcome.idle_cpu_s.items()},
                "percent_total": round(100 * sum(outcome.idle_cpu_s.values()) / self.plan.idle_s, 3)},
            "floor": None if self.floor is None else self.floor.as_json(self.first_audio),
            "problems": dict(tally.problems), "violations": dict(tally.violations),
            "samples": [sample.as_json() for sample in outcome.samples],
        }

    def tables(self) -> Group:
        """Draw the report for a terminal."""
        parts: list[Table | Text] = [Text(self._machine_line(), style="dim")]
        if self.crowded:
            parts.append(Text(f"Others are at work on this machine (load {self.load:.1f}): do not trust these times.",
                              style="yellow"))
        if self.stolen > ROBBED:
            parts.append(Text(f"The host of this virtual machine took {100 * self.stolen:.1f} % of the cores' time "
                              "meanwhile: it may have made the slowest turns.", style="yellow"))
        parts += [self._times(), *self._lines(), Text("")]
        if len(self.by_recording) > 1:
            parts.append(self._recordings_table())
        if self.floor is not None:
            parts += [Text(""), self._floor_table(self.floor)]
        # As `Text`: an appliance chose some of these words, and none may be taken for markup.
        parts += [Text(f"{times} x {sentence}", style="red") for counter in (
            self.outcome.tally.problems, self.outcome.tally.violations) for sentence, times in counter.most_common(8)]
        return Group(*parts)

    def _machine_line(self) -> str:
        machine = self.machine
        facts = [f"{machine.model}, {machine.cores} cores, {machine.architecture}"]
        facts += [f"governor {machine.governor}"] if machine.governor else []
        facts += [f"{machine.temperature_c:.0f} °C"] if machine.temperature_c is not None else []
        if machine.throttling is not None and machine.throttling.throttled:
            facts.append("THROTTLED")
        if machine.throttling is not None and machine.throttling.under_voltage:
            facts.append("UNDER-VOLTAGE")
        return ", ".join(facts)

    def _times(self) -> Table:
        plan = self.plan
        who = f"{plan.devices} device{'s' if plan.devices > 1 else ''}"
        lengths = [recording.seconds for recording in self.said]
        table = Table(box=None, pad_edge=False, title_justify="left",
                      title=f"{who}, {len(self.outcome.samples)} turns, {self.failed} failed; recordings of "
                      f"{min(lengths):.1f} to {max(lengths):.1f} s, then {plan.tail_silence_s:g} s of silence")
        for head in ("Seconds after the end of speech", "p50", "p95", "p99", "most", "step p50", "step p95"):
            table.add_column(head, justify="left" if not table.columns else "right")
        for mark, label in MARKS.items():
            table.add_row(label, *_cells(self.at(mark)), *_cells(self.took(mark), 2))
        table.add_row("first sound at the pin", *_cells(self.first_audio), *_cells(self.took("first_audio"), 2),
                      style="bold")
        table.add_row("complete", *_cells(self.complete))
        return table

    def _recordings_table(self) -> Table:
        table = Table(box=None, pad_edge=False, title_justify="left", title="First sound at the pin, by recording")
        for head in ("Seconds", "length", "turns", "p50", "p95"):
            table.add_column(head, justify="left" if not table.columns else "right")
        lengths = {each.name: each.seconds for each in self.said}
        for name, found in self.by_recording.items():
            table.add_row(Text(name), f"{lengths[name]:.1f}", str(found.count), *_cells(found, 2))
        return table

    def _lines(self) -> list[Text]:
        data = self.as_json()
        turns, playback, cpu = data["turns"], data["playback"], data["cpu"]
        by = ", ".join(f"{count} by {name}" for name, count in turns["backends"].items()) or "none"
        seen = f" {turns['with_picture']} had a picture." if self.plan.picture else ""
        lines = [f"Answered: {by}; {turns['transcript_ready']} were understood before the end of speech.{seen}",
                 f"Playback: {playback['underruns']} gaps ({playback['underrun_s']:.2f} s), {playback['lost_bytes']} "
                 f"bytes lost, at most {playback['most_ahead_s']:.1f} s ahead."]
        if cpu["per_turn_s"]:
            each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in cpu["per_turn_s"].items())
            lines.append(f"CPU: {cpu['per_turn_total_s']:.2f} s a turn ({each}).")
        if data["memory"]["peak_pss_total"]:
            each = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in data["memory"]["peak_pss"].items())
            lines.append(f"Memory: {data['memory']['peak_pss_total'] / 1e6:.0f} MB at most ({each}).")
        if data["idle"]:
            lines.append(f"Idle: {data['idle']['percent_total']:.2f} % of a core over {self.plan.idle_s:.0f} s.")
        return [Text(line) for line in lines]

    def _floor_table(self, floor: Floor) -> Table:
        table = Table(box=None, pad_edge=False, title_justify="left", title="The engines alone")
        for head in ("Seconds", "p50", "p95", "p99", "most", "first sound / this"):
            table.add_column(head, justify="left" if not table.columns else "right")
        ratios = floor.as_json(self.first_audio)["ratio"]
        for name, label in (("hearing", "hearing the last piece"), ("hearing_left", "what of it is left at the end"),
                            ("thinking", "thinking up to the first clause"), ("speaking", "its first sound"),
                            ("engines", "all three"), ("after_speech", "what has to wait for the end")):
            ratio = f"{ratios[name]:.2f}" if name in ratios else ""
            table.add_row(label, *_cells(floor.of(name)), ratio, style="bold" if ratio else "")
        return table


def _cells(found: Spread | None, columns: int = 4) -> list[str]:
    if found is None:
        return ["-"] * columns
    return [f"{value:.3f}" for value in (found.p50, found.p95, found.p99, found.most)[:columns]]


def _json(found: Spread | None) -> dict[str, float] | None:
    return None if found is None else found.as_json()
