"""`hotpinctl logs`: the last turns, or all messages about one, from the journal."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotpind.system.findings import UNIT
from hotpind.system.logs import FIELD_DEVICE, FIELD_PREFIX, FIELD_STAGE, FIELD_TURN

TURN_STAGE = "turn"
"""Value of HOTPIN_STAGE in the one message that sums a turn up."""
READ_S = 30.0
"""Seconds for journalctl to search; a journal on an SD card may be large."""
WIDE = 240
"""Columns of the table when it does not go to a terminal."""
_TIMING = "_MS"
_WARNING = 4

Count = Annotated[int, typer.Option("--lines", "-n", min=1, max=10_000, help="How many of the last ones.")]
TurnId = Annotated[str, typer.Option("--turn", help="All messages about this turn.")]
Device = Annotated[str, typer.Option("--device", help="Only this device.")]
Problems = Annotated[bool, typer.Option("--problems", help="Warnings and errors instead of turns.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


@dataclass(frozen=True, slots=True)
class Entry:
    """A message of the appliance in the journal."""

    time: float
    """Seconds since 1970."""
    priority: int
    """As in syslog: 3 is an error, 4 a warning, 6 information."""
    message: str
    fields: Mapping[str, str]
    """The appliance's own fields, without HOTPIN_, in lower case."""

    @property
    def timings(self) -> dict[str, int]:
        """Milliseconds since the end of speech by stage, in order of time."""
        found = {name.removesuffix(_TIMING.lower()): int(float(value)) for name, value in self.fields.items()
                 if name.endswith(_TIMING.lower())}
        return dict(sorted(found.items(), key=lambda item: item[1]))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("logs")(logs)


def logs(count: Count = 20, turn: TurnId = "", device: Device = "", problems: Problems = False,
         as_json: AsJson = False) -> None:
    """Show the last turns with their stage timings.

    What was said is not in the log, unless privacy.log_transcripts is on.
    """
    command = ["journalctl", f"--unit={UNIT}", "--output=json", "--no-pager", "--quiet"]
    if turn:
        command.append(f"{FIELD_TURN}={turn}")
    elif problems:
        command += [f"--priority={_WARNING}", f"--lines={count}"]
    else:
        command += [f"{FIELD_STAGE}={TURN_STAGE}", f"--lines={count}"]
    if device:
        command.append(f"{FIELD_DEVICE}={device}")
    entries = list(parse_entries(_journal(command)))
    if as_json:
        for entry in entries:
            typer.echo(json.dumps({"time": entry.time, "priority": entry.priority, "message": entry.message,
                                   **entry.fields}))
    elif not entries:
        typer.echo("There is nothing in the journal yet." if not turn else
                   f"There is no turn {turn} in the journal (any more).")
    elif turn or problems:
        for entry in entries:
            typer.echo(f"{_when(entry.time)}  {entry.message}")
    else:
        _print_turns(entries)


def parse_entries(lines: Iterable[str]) -> Iterator[Entry]:
    """Parse journalctl's JSON lines; a field that is not text comes as a list of bytes or of values."""
    for line in lines:
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if not isinstance(data, dict):
            continue
        own = {name.removeprefix(FIELD_PREFIX).lower(): _text(value) for name, value in data.items()
               if name.startswith(FIELD_PREFIX)}
        yield Entry(time=int(_text(data.get("__REALTIME_TIMESTAMP")) or 0) / 1e6,
                    priority=int(_text(data.get("PRIORITY")) or 6), message=_text(data.get("MESSAGE")), fields=own)


def _text(value: Any) -> str:
    if isinstance(value, list):
        if all(isinstance(part, int) for part in value):
            return bytes(value).decode("utf-8", "replace")
        return _text(value[-1])
    return "" if value is None else str(value)


def _journal(command: list[str]) -> list[str]:
    if shutil.which(command[0]) is None:
        typer.echo("This machine has no journal; the messages are where the appliance was started.", err=True)
        raise typer.Exit(1)
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=READ_S,
                              stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        typer.echo(f"journalctl did not answer within {READ_S:.0f} s; ask for fewer lines.", err=True)
        raise typer.Exit(1) from None
    if done.returncode != 0 and "No journal files" in done.stderr:
        typer.echo("The journal cannot be read; run this as root, or join the group systemd-journal.", err=True)
        raise typer.Exit(1)
    if done.returncode != 0:
        typer.echo(done.stderr.strip() or f"journalctl failed (exit status {done.returncode})", err=True)
        raise typer.Exit(1)
    return done.stdout.splitlines()


def _print_turns(entries: list[Entry]) -> None:
    stages = list(dict.fromkeys(stage for entry in entries for stage in entry.timings))
    table = Table(box=None, pad_edge=False)
    for head in ("When", "Turn", "Device", "Outcome", "Answered by"):
        table.add_column(head, no_wrap=True)
    for stage in stages:
        table.add_column(f"{stage.replace('_', ' ')} (ms)", justify="right")
    for entry in entries:
        timings = entry.timings
        table.add_row(*(Text(cell) for cell in (
            _when(entry.time), *(entry.fields.get(name, "") for name in ("turn", "device", "outcome", "backend")),
            *(str(timings.get(stage, "")) for stage in stages))))
    console = Console(highlight=False)
    # A pipe has no width; a table cut to 80 columns would lose what it was asked for.
    console.print(table, width=None if console.is_terminal else WIDE)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
