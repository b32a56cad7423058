"""`hotpinctl top`: what the appliance is doing, live."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hotpind.bench.exposition import Buckets, Figures, read_figures
from hotpind.bench.processes import DAEMON, Usage, cpu_between, peer_pid, read_usage
from hotpind.cli.control import call, fetch, find_socket, settings_of
from hotpind.config import Config
from hotpind.errors import HotpinError
from hotpind.web.metrics import STAGES

EXIT_FAILED = 1
FASTEST_S = 1.0
"""The appliance is never asked more often: watching must not slow down what is watched."""

Interval = Annotated[float, typer.Option(min=FASTEST_S, max=3600, help="Seconds between two looks.")]
Once = Annotated[bool, typer.Option("--once", help="Look once (that takes a second, for the CPU's share) and end.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line for each look.")]


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    at: float
    """Monotonic seconds."""
    status: Mapping[str, Any]
    figures: Figures
    usage: Mapping[str, Usage]
    """By process; empty when it may not be read."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("top")(top)


def top(ctx: typer.Context, interval: Interval = FASTEST_S, once: Once = False, as_json: AsJson = False) -> None:
    """Show turns, times, queues, engines, devices, CPU and memory, until interrupted."""
    try:
        asyncio.run(_watch(settings_of(ctx), interval, once=once, as_json=as_json))
    except HotpinError as error:
        typer.echo(json.dumps({"error": str(error)}) if as_json else str(error), err=not as_json)
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        pass


async def _watch(config: Config, interval_s: float, *, once: bool, as_json: bool) -> None:
    first = before = await look(config)
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, screen=console.is_terminal and not (once or as_json),
              transient=True) as live:
        while True:
            await asyncio.sleep(interval_s)
            now = await look(config)
            seen = snapshot(first, before, now)
            before = now
            if as_json:
                print(json.dumps(seen, indent=2 if once else None, ensure_ascii=False), flush=True)
            elif not once:
                live.update(draw(seen), refresh=True)
            if once:
                break
    if not as_json:
        console.print(draw(seen))


async def look(config: Config) -> Look:
    """Ask the daemon over its control socket. Raises `OperatorError`."""
    socket = find_socket(config)
    status = await call("GET", "/api/v1/status", config=config, socket=socket)
    figures = read_figures((await fetch("GET", "/metrics", config=config, socket=socket)).decode())
    pid = await asyncio.to_thread(peer_pid, socket)
    usage = await asyncio.to_thread(read_usage, pid) if pid else {}
    return Look(time.monotonic(), status, figures, usage)


def snapshot(first: Look, before: Look, now: Look) -> dict[str, Any]:
    """Sum up what is seen ``now``; ``first`` and ``before`` give what changed meanwhile. Pure."""
    status, figures = now.status, now.figures
    passed = max(now.at - before.at, 1e-9)
    cpu = cpu_between(dict(before.usage), dict(now.usage))
    processes = {name: {"cpu_percent": round(100 * cpu[name] / passed, 1), "pss": usage.pss}
                 for name, usage in now.usage.items()}
    turns: dict[str, dict[str, int]] = {}
    for labels, number in figures.values.get("hotpin_turns_total", {}).items():
        named = dict(labels)
        turns.setdefault(named.get("outcome", ""), {})[named.get("backend", "")] = int(number)

    def times(name: str, **labels: str) -> dict[str, dict[str, float | None]]:
        whole = figures.histogram(name, **labels)
        return {"since_start": _quantiles(whole),
                "while_watching": _quantiles(whole.since(first.figures.histogram(name, **labels)))}

    return {
        "version": status["version"], "ready": status["ready"], "uptime_s": status["uptime_s"],
        "brain": status["brain"], "faults": list(status["faults"]),
        "turns": turns, "turns_running": int(figures.value("hotpin_turns_running")),
        "first_audio": times("hotpin_time_to_first_audio_seconds"),
        "stages": {stage: times("hotpin_stage_seconds", stage=stage) for stage in STAGES},
        "queues": {name: int(depth) for name, depth in figures.by_label("hotpin_queue_depth", "engine").items()},
        "engines": [{"name": engine["name"], "state": engine["state"], "restarts": engine["restarts"],
                     **processes.get(engine["name"], {"cpu_percent": None, "pss": None})}
                    for engine in status["engines"]],
        "daemon": processes.get(DAEMON, {"cpu_percent": None, "pss": None}),
        "backends": {backend["name"]: backend["state"] for backend in status["backends"]},
        "devices": list(status["devices"]),
        "underruns": int(figures.value("hotpin_playback_underruns_total")),
        "answer_audio_s": round(figures.value("hotpin_answer_audio_seconds_total"), 1),
    }


def _quantiles(buckets: Buckets) -> dict[str, float | None]:
    found: dict[str, float | None] = {"count": buckets.count}
    for percent in (50, 95, 99):
        quantile = buckets.quantile(percent / 100)
        found[f"p{percent}"] = None if quantile is None else round(quantile, 4)
    return found


def draw(seen: Mapping[str, Any]) -> Group:
    """Draw a snapshot for the terminal."""
    counts = [f"{sum(backends.values())} {outcome} ({', '.join(f'{count} {name}' for name, count in backends.items())})"
              for outcome, backends in seen["turns"].items()]
    parts: list[Table | Text] = [
        Text(f"hotpind {seen['version']}, {'works' if seen['ready'] else 'is starting'}, up {seen['uptime_s']} s, "
             f"{seen['brain']}", style="bold"),
        *(Text(f"fault: {fault}", style="bold red") for fault in seen["faults"]),
        Text(f"turns: {seen['turns_running']} running; {'; '.join(counts) or 'none yet'}"), Text(""), _times(seen),
        Text(""), _processes(seen), Text(""),
        Text("waiting: " + ", ".join(f"{depth} for {name}" for name, depth in seen["queues"].items())
             + f"; playback ran dry {seen['underruns']} times"),
        Text("backends: " + ", ".join(f"{name} {state}" for name, state in seen["backends"].items())),
        Text(f"devices: {len(seen['devices'])} {', '.join(seen['devices'])}"),
    ]
    return Group(*parts)


def _times(seen: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("Seconds after the end of speech", "p50", "p95", "p99", "now: turns", "p50", "p95"):
        table.add_column(head, justify="left" if not table.columns else "right")
    rows = [*((stage.replace("_", " "), seen["stages"][stage]) for stage in STAGES if stage != "first_audio"),
            ("time to first audio", seen["first_audio"])]
    for label, times in rows:
        whole, recent = times["since_start"], times["while_watching"]
        table.add_row(label, *(_number(whole[name]) for name in ("p50", "p95", "p99")), str(recent["count"]),
                      _number(recent["p50"]), _number(recent["p95"]),
                      style="bold" if label == "time to first audio" else "")
    return table


def _processes(seen: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("Process", "state", "restarts", "CPU %", "MB"):
        table.add_column(head, justify="left" if len(table.columns) < 2 else "right")
    for each in ({"name": DAEMON, "state": "", "restarts": "", **seen["daemon"]}, *seen["engines"]):
        memory = "-" if each["pss"] is None else f"{each['pss'] / 1e6:.0f}"
        share = "-" if each["cpu_percent"] is None else f"{each['cpu_percent']:.1f}"
        table.add_row(Text(each["name"]), Text(each["state"]), str(each["restarts"]), share, memory)
    return table


def _number(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.3f}"
