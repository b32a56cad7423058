"""`hotpinctl simulate`: many pins at once, for load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hotpind.cli.ask import AsJson, Fast, Fingerprint, PairWait, Token, Url
from hotpind.cli.control import settings_of
from hotpind.cli.guest import guest
from hotpind.config import Config
from hotpind.errors import HotpinError
from hotpind.pin.client import Pin, base_url
from hotpind.pin.find import Follower, SharedSearch
from hotpind.pin.home import Wishes, reach
from hotpind.pin.memory import load_memory, memory_file
from hotpind.pin.question import read_question
from hotpind.pin.tally import Tally
from hotpind.pin.wearer import Habits, Wearer
from hotpind.spoken import speak

QUESTIONS = ("What is the capital of France?", "How many days does a week have?", "Why is the sky blue?",
             "Tell me something about trees.", "What can I cook with eggs and rice?")
"""Spoken by Piper when no recordings are given."""
REFRESH_S = 0.5
EXIT_FAILED = 1

Count = Annotated[int, typer.Option(min=1, max=1000, help="How many pins.")]
Turns = Annotated[int, typer.Option(min=1, max=100_000, help="Questions that each pin asks.")]
Wavs = Annotated[list[Path] | None, typer.Option("--wav", help="A recorded question (WAV); may be repeated.")]
Prefix = Annotated[str, typer.Option(help="Session ids are this and a number.")]
Pause = Annotated[float, typer.Option(min=0, max=3600, help="Seconds between an answer and the next question.")]
Spread = Annotated[float, typer.Option(min=0, max=3600, help="The pins begin within this many seconds.")]
Patience = Annotated[float, typer.Option(min=1, max=86400, help="Seconds without any answer after which a pin ends.")]


@dataclass(frozen=True, slots=True)
class _Crowd:
    """Who takes part."""

    wishes: tuple[Wishes, ...]
    questions: tuple[bytes, ...]
    habits: Habits
    spread_s: float


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(ctx: typer.Context, count: Count = 5, turns: Turns = 3, wav: Wavs = None, url: Url = "",
             session_prefix: Prefix = "sim-", token: Token = "", fingerprint: Fingerprint = "",
             pair_wait: PairWait = 120.0, fast: Fast = False, pause: Pause = 1.0, spread: Spread = 2.0,
             patience: Patience = 180.0, as_json: AsJson = False) -> None:
    """Wear many pins at once, each asking its questions and listening to the answers, and sum up how they fared.

    The exit status is 0 only when every question was answered.
    """
    try:
        config = settings_of(ctx)
        if url:
            base_url(url)
        questions = [read_question(path) for path in wav] if wav else speak(QUESTIONS, config)
        sessions = [f"{session_prefix}{number:03}" for number in range(1, count + 1)]
        crowd = _Crowd(
            tuple(Wishes(session, memory_file(session, os.environ), url=url, token=token, fingerprint=fingerprint,
                         pair_wait_s=pair_wait) for session in sessions),
            tuple(questions), Habits(turns, pause, realtime=not fast, patience_s=patience), spread)
        tally = asyncio.run(_run(crowd, config, Tally(), show=not as_json))
    except HotpinError as error:
        typer.echo(json.dumps({"error": str(error)}) if as_json else str(error), err=not as_json)
        raise typer.Exit(EXIT_FAILED) from None
    wanted = count * turns
    if as_json:
        typer.echo(json.dumps({"pins": count, "turns_wanted": wanted, **tally.as_json()}, indent=2,
                              ensure_ascii=False))
    else:
        Console(highlight=False).print(summary(tally, wanted))
    if tally.answered < wanted:
        raise typer.Exit(EXIT_FAILED)


async def _run(crowd: _Crowd, config: Config, tally: Tally, *, show: bool) -> Tally:
    async with guest(crowd.wishes[0], config):
        pass  # who may not ask the appliance on this machine is told so before any pin begins
    wanted = len(crowd.wishes) * crowd.habits.turns
    search = SharedSearch()
    # Somebody who gives an address means that one and no other.
    listening = contextlib.nullcontext() if crowd.wishes[0].url else Follower()
    async with (_on_screen(tally, wanted) if show else contextlib.nullcontext(), listening as follower,
                asyncio.TaskGroup() as group):
        for number, wishes in enumerate(crowd.wishes):
            start = crowd.spread_s * number / len(crowd.wishes)
            # Each pin begins with another question, so that their answers can be told apart.
            first = number % len(crowd.questions)
            questions = crowd.questions[first:] + crowd.questions[:first]
            group.create_task(_wear_one(wishes, config, (search, follower), Wearer(questions, crowd.habits, tally),
                                        start), name=f"wearer of {wishes.session_id}")
    return tally


async def _wear_one(wishes: Wishes, config: Config, ears: tuple[SharedSearch, Follower | None], wearer: Wearer,
                    start_s: float) -> None:
    search, follower = ears
    await asyncio.sleep(start_s * (1 + 0.1 * random.random()))  # noqa: S311 - spreads load, guards nothing
    async with guest(wishes, config) as filled:
        async def reach_home() -> Pin:
            return await reach(filled, browse=search)

        async def moved(pin: Pin) -> None:
            assert follower is not None
            remembered = await asyncio.to_thread(load_memory, filled.memory_file)
            await follower.moved_from(pin.base.host or "", remembered.appliance_id)

        await wearer.run(reach_home, None if filled.url or follower is None else moved)


@contextlib.asynccontextmanager
async def _on_screen(tally: Tally, wanted: int) -> AsyncIterator[None]:
    """Show how far it is while it goes on, where there is a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        yield
        return

    async def refresh(live: Live) -> None:
        while True:
            live.update(summary(tally, wanted), refresh=True)
            await asyncio.sleep(REFRESH_S)

    with Live(console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(refresh(live), name="summary on screen")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def summary(tally: Tally, wanted: int) -> Group:
    """Draw the sums."""
    table = Table(box=None, pad_edge=False, title_justify="left",
                  title=f"{tally.turns} of {wanted} turns, {tally.answered} answered, {tally.failed} failed, "
                        f"{tally.reconnects} reconnects")
    for head in ("Seconds after the end of speech", "p50", "p95", "p99", "max"):
        table.add_column(head, justify="left" if not table.columns else "right")
    for label, name in (("recording confirmed", "transcription"), ("question understood", "llm"),
                        ("first sound", "first_audio"), ("complete", "complete"), ("acknowledgement", "ack")):
        values = tally.stage(name)
        table.add_row(label, *(f"{value:.3f}" if value is not None else "-" for value in values.values()))
    lines: list[Table | Text] = [table, Text(
        f"Playback: {tally.underruns} gaps ({tally.underrun_s:.2f} s), {tally.lost_bytes} bytes lost, "
        f"at most {tally.most_ahead_s:.1f} s ahead.")]
    # As `Text`: an appliance chose some of these words, and none may be taken for markup.
    lines += [Text(f"{times} x {sentence}", style="red")
              for counter in (tally.problems, tally.violations) for sentence, times in counter.most_common(10)]
    return Group(*lines)
