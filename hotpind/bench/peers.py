"""The appliance against the stack behind Home Assistant's Assist: same machine, same models, turn about.

Started by scripts/bench-peers, which makes the peers' own environment first.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotpind import __version__
from hotpind.bench.own_appliance import own_appliance
from hotpind.bench.peer_stack import PeerStack, PeerTurn, home_directory, whisper_directory
from hotpind.bench.recordings import Recording, recordings, with_room_silence
from hotpind.bench.sample import Sample, sample_of
from hotpind.bench.spread import Spread, spread
from hotpind.config import Config, load_config
from hotpind.config.paths import models_dir
from hotpind.errors import HotpinError, OperatorError
from hotpind.models.store import ModelStore
from hotpind.pin.client import Pin
from hotpind.system.machine import read_machine

EXIT_FAILED = 1
LOCAL = {"chat.groq.enabled": False, "chat.backend": []}
"""The peer has no cloud either."""


@dataclass(slots=True)
class Comparison:
    """Turns of both."""

    ours: list[Sample] = field(default_factory=list)
    theirs: list[PeerTurn] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def spreads(self) -> dict[str, tuple[Spread | None, Spread | None]]:
        """Return the appliance's and the peer's times by name, in seconds."""
        answered = [sample for sample in self.ours if sample.first_audio is not None]
        return {
            "transcript": (spread(each.marks["transcript"] for each in answered if "transcript" in each.marks),
                           spread(turn.transcript for turn in self.theirs)),
            "model_first_word": (spread(each.spans.get("first_token", 0.0) for each in answered),
                                 spread(turn.first_token - turn.transcript for turn in self.theirs)),
            "first_audio": (spread(each.first_audio or 0.0 for each in answered),
                            spread(turn.first_audio for turn in self.theirs)),
            "without_model": (spread((each.first_audio or 0.0) - each.spans.get("first_token", 0.0)
                                     for each in answered), spread(turn.without_model for turn in self.theirs)),
        }

    def ratios(self) -> dict[str, float]:
        """Return the appliance's median as a share of the peer's, where both are known."""
        return {name: round(ours.p50 / theirs.p50, 3) for name, (ours, theirs) in self.spreads().items()
                if ours is not None and theirs is not None and theirs.p50 > 0}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, in seconds."""
        return {
            "turns": {"hotpind": len(self.ours), "peer": len(self.theirs)}, "failures": self.failures,
            "times": {name: {"hotpind": ours and ours.as_json(), "peer": theirs and theirs.as_json()}
                      for name, (ours, theirs) in self.spreads().items()},
            "ratio": self.ratios(),
            "samples": {"hotpind": [sample.as_json() for sample in self.ours],
                        "peer": [{"transcript": round(turn.transcript, 4), "first_token": round(turn.first_token, 4),
                                  "first_audio": round(turn.first_audio, 4)} for turn in self.theirs]},
        }


Turns = Annotated[int, typer.Option(min=1, max=10_000, help="Turns of each; at least 30 for numbers to be published.")]
Wavs = Annotated[list[Path] | None, typer.Option("--wav", help="A recorded question (WAV); may be repeated.")]
Tail = Annotated[float, typer.Option(min=0, max=30, help="Seconds of a room's silence before the end of speech.")]
Pause = Annotated[float, typer.Option(min=0, max=60, help="Seconds between two turns.")]
Threads = Annotated[int, typer.Option("--peer-threads", min=0, max=64, help="Threads of the peer's whisper; 0: its own "
                                      "default.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings (TOML) with the models.")]
Home = Annotated[Path | None, typer.Option(help="Where the peers' environment and model are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of a table.")]


def compare(turns: Turns = 30, wav: Wavs = None, tail_silence: Tail = 0.4, pause: Pause = 1.0,
            peer_threads: Threads = 0, config: ConfigFile = None, home: Home = None, as_json: AsJson = False) -> None:
    """Let the appliance and wyoming-faster-whisper + wyoming-piper answer the same questions, turn about.

    Both begin a new conversation with every question, hear it in real time, and ask the same language model with the
    same instructions. The exit status is 0 only when both answered all of them.
    """
    try:
        settings, place = load_config(config), home or home_directory()
        python = place / "venv" / "bin" / "python"
        if not python.exists():
            raise OperatorError(f"{python}: the peers are not installed; start this with scripts/bench-peers")
        said, store = recordings(wav or [], settings), ModelStore(models_dir(settings))
        whisper = whisper_directory(store, settings.stt.model, place, lambda _, __: None)
        machine, load = read_machine(), os.getloadavg()[0]
        with tempfile.TemporaryDirectory(prefix="hpp-", dir="/tmp") as sockets:
            stack = PeerStack(python, settings, store, whisper, Path(sockets), whisper_threads=peer_threads)
            facts = stack.as_json(python)
            found = asyncio.run(_alternate(stack, settings, config, said, Path(sockets) / "log", turns=turns,
                                           tail_silence_s=tail_silence, pause_s=pause))
    except HotpinError as error:
        typer.echo(json.dumps({"error": str(error)}) if as_json else str(error), err=not as_json)
        raise typer.Exit(EXIT_FAILED) from None
    report = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "version": __version__,
              "machine": {**asdict(machine), "load_before": round(load, 2)},
              "plan": {"turns": turns, "tail_silence_s": tail_silence, "pause_s": pause,
                       "recordings": [{"name": each.name, "seconds": round(each.seconds, 2)} for each in said]},
              "peer": facts, **found.as_json()}
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _show(found, facts, Console(highlight=False))
    if found.failures:
        raise typer.Exit(EXIT_FAILED)


async def _alternate(stack: PeerStack, config: Config, config_file: Path | None, said: Sequence[Recording], log: Path,
                     *, turns: int, tail_silence_s: float, pause_s: float) -> Comparison:
    async with AsyncExitStack() as running:
        peer = await running.enter_async_context(stack.running(log))
        ours = await running.enter_async_context(own_appliance(config, config_file, LOCAL))
        pin = await running.enter_async_context(Pin(ours.url, "bench-peers"))
        found, endless = Comparison(), itertools.cycle(said)
        # The first turn of each loads what is loaded lazily, and does not count.
        for number in range(turns + 1):
            recording = next(endless)
            sound = with_room_silence(recording.pcm, tail_silence_s)
            kept = found if number else Comparison()
            # Who comes first changes, so that neither always finds the caches that the other left.
            order: list[Callable[[], Awaitable[None]]] = [partial(_our_turn, pin, recording, sound, kept),
                                                          partial(_their_turn, peer, sound, kept)]
            for turn in order if number % 2 else reversed(order):
                await turn()
                await asyncio.sleep(pause_s)
    return found


async def _our_turn(pin: Pin, recording: Recording, sound: bytes, found: Comparison) -> None:
    try:
        if not pin.connected:
            await pin.connect()
        await pin.reset()
        sample = sample_of(await pin.ask(sound), pin.session_id, recording.name)
    except HotpinError as error:
        found.failures.append(f"hotpind: {error}")
        return
    if sample.answered:
        found.ours.append(sample)
    else:
        found.failures.append(f"hotpind: {sample.error or 'no sound came'}")


async def _their_turn(peer: PeerStack, sound: bytes, found: Comparison) -> None:
    try:
        found.theirs.append(await peer.ask(sound))
    except (HotpinError, OSError, TimeoutError) as error:
        found.failures.append(f"peer: {error or type(error).__name__}")


def _show(found: Comparison, facts: dict[str, Any], console: Console) -> None:
    versions = facts["versions"]
    console.print(Text(", ".join(f"{name} {version}" for name, version in versions.items()), style="dim"))
    for command in facts["commands"]:
        console.print(Text(command, style="dim"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, title_justify="left",
                  title=f"{len(found.ours)} turns of hotpind, {len(found.theirs)} of the peer")
    for head in ("Seconds", "hotpind p50", "p95", "peer p50", "p95", "ratio"):
        table.add_column(head, justify="left" if not table.columns else "right")
    ratios = found.ratios()
    for name, label in (("transcript", "end of speech to transcript"), ("model_first_word", "model's first token"),
                        ("first_audio", "end of speech to first sound"),
                        ("without_model", "the same without the model's first token")):
        ours, theirs = found.spreads()[name]
        cells = [f"{value:.3f}" for each in (ours, theirs) if each is not None for value in (each.p50, each.p95)]
        ratio = f"{ratios[name]:.2f}" if name in ratios else "-"
        table.add_row(label, *(cells if len(cells) == 4 else ["-"] * 4), ratio)
    console.print(table)
    for failure in found.failures[:10]:
        console.print(Text(failure, style="red"))


if __name__ == "__main__":
    typer.run(compare)
