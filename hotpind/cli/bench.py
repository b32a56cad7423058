"""`hotpinctl bench`: how fast the appliance answers on this machine, stage by stage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hotpind.bench.chart import timeline
from hotpind.bench.drive import Outcome, Plan, Reach, drive
from hotpind.bench.floor import Floor, FloorMeter
from hotpind.bench.own_appliance import RunningAppliance, own_appliance
from hotpind.bench.processes import peer_pid
from hotpind.bench.recordings import Recording, recordings
from hotpind.bench.report import Report
from hotpind.bench.sample import Sample
from hotpind.bench.stand_in import KEY, StandIn
from hotpind.bench.timeline import svg
from hotpind.cli.control import find_socket, settings_of
from hotpind.cli.guest import connected_pin
from hotpind.config import Config
from hotpind.errors import HotpinError, OperatorError
from hotpind.pin.client import Pin, base_url
from hotpind.pin.home import Wishes
from hotpind.pin.memory import memory_file
from hotpind.pin.question import LARGEST_PICTURE_BYTES, read_file
from hotpind.system.machine import read_machine

EXIT_FAILED = 1
FLOOR_ROUNDS = 3
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

Wavs = Annotated[list[Path] | None, typer.Option(
    "--wav", help="A recorded question (WAV); may be repeated. Without: the recordings of Debian's "
    "pocketsphinx-testdata, else a question spoken by Piper.")]
Url = Annotated[str, typer.Option(help="A running appliance. Without: one is started for the benchmark, with the "
                                  "current settings, on loopback.")]
Devices = Annotated[int, typer.Option(min=1, max=1000, help="Devices that talk at the same time.")]
Turns = Annotated[int, typer.Option(min=1, max=100_000, help="Questions that each device asks.")]
WarmUp = Annotated[int, typer.Option(min=0, max=100, help="Questions of each device before those that count.")]
Tail = Annotated[float, typer.Option(min=0, max=30, help="Seconds of a room's silence before the end of speech is "
                                     "told, as a person lets go of a button.")]
Pause = Annotated[float, typer.Option(min=0, max=3600, help="Seconds between an answer and the next question.")]
SpreadOver = Annotated[float, typer.Option("--spread", min=0, max=3600, help="The devices begin within this many "
                                           "seconds.")]
Fast = Annotated[bool, typer.Option("--fast", help="Send questions faster than they were spoken.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin a new conversation with every question.")]
PictureFile = Annotated[Path | None, typer.Option("--picture", help="A picture sent with every question.")]
Local = Annotated[bool, typer.Option("--local", help="Leave out every cloud of the settings.")]
Cloud = Annotated[float | None, typer.Option("--cloud-latency", min=0, max=60, metavar="SECONDS",
                                             help="Put a stand-in in the cloud's place, which says its first word "
                                             "after so many seconds.")]
Words = Annotated[int, typer.Option("--answer-words", min=5, max=2000, help="How long the stand-in's answers are.")]
WithFloor = Annotated[bool, typer.Option("--floor", help="Measure the engines alone as well, and the ratio.")]
Idle = Annotated[float, typer.Option(min=0, max=86400, help="Seconds to watch the appliance do nothing, afterwards.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of tables.")]
Chart = Annotated[Path | None, typer.Option(help="Draw the median turn's timeline into this file (SVG).")]


@dataclass(frozen=True, slots=True)
class _Task:
    """What was asked for, apart from the plan."""

    config: Config
    config_file: Path | None
    url: str
    local: bool
    cloud_s: float | None
    answer_words: int
    floor: bool


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(ctx: typer.Context, wav: Wavs = None, url: Url = "", devices: Devices = 1, turns: Turns = 30,
          warm_up: WarmUp = 1, tail_silence: Tail = 0.4, pause: Pause = 1.0, spread: SpreadOver = 0.0,
          fast: Fast = False, fresh: Fresh = False, picture: PictureFile = None, local: Local = False,
          cloud_latency: Cloud = None, answer_words: Words = 30, floor: WithFloor = False, idle: Idle = 0.0,
          as_json: AsJson = False, chart: Chart = None) -> None:
    """Measure the appliance with recorded questions, as one or more devices that speak in real time.

    The exit status is 0 only when every question was answered.
    """
    try:
        config = settings_of(ctx)
        task = _Task(config, ctx.find_root().params.get("config"), url, local, cloud_latency, answer_words, floor)
        _check(task, chart)
        said = recordings(wav or [], config)
        plan = Plan(devices=devices, turns=turns, warm_up=warm_up, tail_silence_s=tail_silence, pause_s=pause,
                    spread_s=spread, realtime=not fast, fresh=fresh, idle_s=idle,
                    picture=read_file(picture, LARGEST_PICTURE_BYTES) if picture else b"")
        machine, load = read_machine(), os.getloadavg()[0]
        with _progress(plan, show=not as_json) as on_turn:
            outcome, measured = asyncio.run(_run(task, plan, said, on_turn))
        # Throttling shows after the work, not before it.
        after = read_machine()
        report = Report(datetime.now(UTC), shlex.join(["hotpinctl", *sys.argv[1:]]),
                        replace(machine, throttling=after.throttling, temperature_c=after.temperature_c), load, config,
                        not url, plan, said, cloud_latency, outcome, measured)
        if chart is not None:
            _draw(report, chart)
    except HotpinError as error:
        typer.echo(json.dumps({"error": str(error)}) if as_json else str(error), err=not as_json)
        raise typer.Exit(EXIT_FAILED) from None
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(report.tables())
    if report.failed or len(outcome.samples) < devices * turns:
        raise typer.Exit(EXIT_FAILED)


def _check(task: _Task, chart: Path | None) -> None:
    """Refuse what cannot be done before anything is started."""
    if task.url:
        host = base_url(task.url).host
        if task.cloud_s is not None or task.local:
            raise OperatorError("--cloud-latency and --local are settings of the benchmark's own appliance; "
                                "leave out --url")
        if task.floor and host not in LOOPBACK:
            raise OperatorError("--floor uses the engines' sockets; run the benchmark on the appliance's own machine")
    if task.local and task.cloud_s is not None:
        raise OperatorError("--local leaves the cloud out and --cloud-latency puts one in; choose one of them")
    if chart is not None and not chart.absolute().parent.is_dir():
        raise OperatorError(f"{chart.parent}: there is no such directory; choose another file for --chart")


async def _run(task: _Task, plan: Plan, said: list[Recording], on_turn: Callable[[Sample], None]
               ) -> tuple[Outcome, Floor | None]:
    async with AsyncExitStack() as stack:
        cloud = None
        if task.cloud_s is not None:
            cloud = await stack.enter_async_context(StandIn(task.cloud_s, answer_words=task.answer_words).serving())
        appliance = _given(task) if task.url else await stack.enter_async_context(
            own_appliance(task.config, task.config_file, _overrides(task, plan, cloud),
                          environ={**os.environ, "GROQ_API_KEY": KEY} if cloud else os.environ))
        outcome = await drive(plan, said, _reach(task, appliance), appliance.pid, on_turn)
        measured = None
        if task.floor:
            if appliance.control is None:
                raise OperatorError("--floor needs the appliance's control socket, which was not found; try with sudo, "
                                    "or leave out --url")
            meter = FloorMeter(task.config, appliance.control.parent, cloud)
            measured = await meter.measure(said, plan.tail_silence_s, FLOOR_ROUNDS)
        return outcome, measured


def _given(task: _Task) -> RunningAppliance:
    """Describe the appliance at ``--url``; on this machine its processes can be watched."""
    if base_url(task.url).host not in LOOPBACK:
        return RunningAppliance(task.url, None, None)
    control = find_socket(task.config)
    pid = peer_pid(control)
    return RunningAppliance(task.url, control if pid else None, pid)


def _overrides(task: _Task, plan: Plan, cloud: StandIn | None) -> dict[str, Any]:
    """Return what the benchmark's own appliance has other than the settings."""
    found: dict[str, Any] = {"server.max_devices": max(task.config.server.max_devices, plan.devices)}
    if plan.picture:
        found["limits.images_per_minute"] = 600
    if task.local:
        found |= {"chat.groq.enabled": False, "chat.backend": []}
    if cloud is not None:
        found |= cloud.settings()
    return found


def _reach(task: _Task, appliance: RunningAppliance) -> Reach:
    @contextlib.asynccontextmanager
    async def own(session: str) -> AsyncIterator[Pin]:
        async with Pin(appliance.url, session) as pin:
            yield pin

    @contextlib.asynccontextmanager
    async def given(session: str) -> AsyncIterator[Pin]:
        wishes = Wishes(session, memory_file(session, os.environ), url=appliance.url, token="", fingerprint="",
                        pair_wait_s=0.0)
        async with connected_pin(wishes, task.config, lambda _: None) as pin:
            yield pin

    return given if task.url else own


@contextlib.contextmanager
def _progress(plan: Plan, *, show: bool) -> Iterator[Callable[[Sample], None]]:
    console = Console(stderr=True)
    if not show or not console.is_terminal:
        yield lambda _: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  console=console, transient=True) as progress:
        bar = progress.add_task("turns", total=plan.devices * plan.turns)
        yield lambda _: progress.advance(bar)


def _draw(report: Report, chart: Path) -> None:
    drawing = timeline(report)
    if drawing is None:
        raise OperatorError("no turn was answered, so there is nothing to draw; look at the problems with --json")
    try:
        chart.write_text(svg(drawing), encoding="utf-8")
    except OSError as error:
        raise OperatorError(f"{chart}: cannot be written: {error.strerror}") from None
