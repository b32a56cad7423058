"""`hotpinctl status` and `hotpinctl turns`: how the appliance is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotpind.cli.control import ask_daemon

AsJson = Annotated[bool, typer.Option("--json", help="Print the daemon's answer as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status")(status)
    app.command("turns")(turns)


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show whether the appliance works, who answers, and what a person should mend."""
    data = ask_daemon(ctx, "GET", "/api/v1/status")
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"hotpind {data['version']} {'works' if data['ready'] else 'is starting'}, "
                       f"up {_duration(data['uptime_s'])}, {data['turns']} turns, {data['url']}"))
    for notice in _notices(data):
        console.print(notice)
    table = Table(box=None, pad_edge=False, show_header=False)
    for engine in data["engines"]:
        table.add_row(Text(engine["name"]), Text(engine["state"]),
                      Text(f"{engine['restarts']} restarts" if engine["restarts"] else ""))
    for server in data["speech_servers"]:
        table.add_row(Text(server["name"]), Text(server["state"]), Text(server["uri"]))
    for backend in data["backends"]:
        retired = f"retired: {', '.join(backend['retired'])}" if backend["retired"] else ""
        table.add_row(Text(backend["name"]), Text(backend["state"]),
                      Text("; ".join(filter(None, (backend["model"], backend["detail"], retired)))))
    console.print(table)
    console.print(Text(f"devices: {', '.join(data['devices']) or 'none connected'} ({data['paired_devices']} paired)"))
    if data["auth_note"]:
        console.print(Text(f"open: {data['auth_note']}", style="yellow"))
    if data["pairing_open_s"]:
        console.print(Text(f"pairing is open for {_duration(data['pairing_open_s'])}"))
    if data["announced_as"]:
        where = ", ".join(data["announced_on"]) or "nothing yet"
        console.print(Text(f"announced as {data['announced_as']} on {where}"))
    if data["last_turn"]:
        console.print(Text(f"last turn: {_turn_line(data['last_turn'])}"))


def _notices(data: dict[str, Any]) -> Iterator[Text]:
    for fault in data["faults"]:
        yield Text(f"fault: {fault}", style="bold red")
    if data["activity"]:
        yield Text(f"at work: {data['activity']}", style="yellow")
    if data["needs_restart"]:
        yield Text(f"restart to apply: {', '.join(data['needs_restart'])}", style="yellow")


def turns(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the last ten turns with their stage timings; nothing of what was said is kept."""
    data = ask_daemon(ctx, "GET", "/api/v1/turns")
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    for turn in data["turns"]:
        typer.echo(_turn_line(turn))


def _turn_line(turn: dict[str, Any]) -> str:
    stages = ", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in turn["stages"].items())
    by = f" by {turn['backend']}" if turn["backend"] else ""
    why = f" ({turn['reason']})" if turn["reason"] else ""
    return f"{turn['turn']} {_duration(turn['age_s'])} ago, {turn['outcome']}{by}{why}: {stages}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
