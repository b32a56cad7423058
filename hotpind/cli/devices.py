"""`hotpinctl devices` and `hotpinctl pair`: which devices may talk to the appliance."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotpind.cli.control import ask_daemon
from hotpind.devices.service import DEFAULT_MINUTES, MOST_MINUTES

WATCH_SECONDS = 1.0
"""How often `pair` looks whether a device came in."""

AsJson = Annotated[bool, typer.Option("--json", help="Print the daemon's answer as JSON.")]
Request = Annotated[str, typer.Argument(help="A request or device id of `hotpinctl devices list`.")]
DeviceId = Annotated[str, typer.Argument(metavar="ID", help="The device's id, see `hotpinctl devices list`.")]

app = typer.Typer(help="The devices that may talk to the appliance.", no_args_is_help=True)


@app.command("list")
def list_devices(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the paired devices and those that wait to be let in."""
    data = ask_daemon(ctx, "GET", "/api/v1/devices")
    if as_json:
        _print_json(data)
        return
    if not data["devices"]:
        typer.echo("No device is paired yet. `hotpinctl pair` lets the next one in.")
    else:
        _print_table(("ID", "Name", "Model", "Firmware", "Paired", "Last seen"), [
            (each["device_id"], each["name"], each["model"], each["firmware"], _when(each["created"]),
             "now" if each["connected"] else _when(each["last_seen"])) for each in data["devices"]])
    if data["pending"]:
        typer.echo("\nWaiting to be let in (`hotpinctl devices approve REQUEST`, or deny):")
        _print_table(("Request", "ID", "Name", "Model", "Address", "Waiting"), [
            (each["request"], each["device_id"], each["name"], each["model"], each["address"],
             f"{each['waiting_s']:.0f} s") for each in data["pending"]])


@app.command()
def rename(ctx: typer.Context, device_id: DeviceId,
           name: Annotated[str, typer.Argument(help="The new name.")],
           as_json: AsJson = False) -> None:
    """Give a device another name."""
    data = ask_daemon(ctx, "PATCH", f"/api/v1/devices/{quote(device_id, safe='')}", {"name": name})
    _tell(data, as_json, f"{device_id} is now called {data['name']}.")


@app.command()
def revoke(ctx: typer.Context, device_id: DeviceId, as_json: AsJson = False) -> None:
    """Take a device's token away and end its connection."""
    data = ask_daemon(ctx, "DELETE", f"/api/v1/devices/{quote(device_id, safe='')}")
    _tell(data, as_json, f"{device_id} may no longer talk to the appliance.")


@app.command()
def approve(ctx: typer.Context, request: Request, as_json: AsJson = False) -> None:
    """Let a waiting device in."""
    data = ask_daemon(ctx, "POST", f"/api/v1/pairing/{quote(request, safe='')}/approve")
    _tell(data, as_json, f"{data['approved']['device_id']} gets its token when it asks again, within seconds.")


@app.command()
def deny(ctx: typer.Context, request: Request, as_json: AsJson = False) -> None:
    """Turn a waiting device away."""
    data = ask_daemon(ctx, "POST", f"/api/v1/pairing/{quote(request, safe='')}/deny")
    _tell(data, as_json, f"{data['denied']['device_id']} was turned away.")


@app.command()
def add(ctx: typer.Context,
        device_id: Annotated[str, typer.Argument(metavar="ID", help="The session id in the pin's firmware.")],
        name: Annotated[str, typer.Option(help="Name shown to people.")] = "",
        as_json: AsJson = False) -> None:
    """Register a pin that cannot pair, and print the token to build into its firmware.

    The token is shown this once. A device that is known already gets a new one, and its old one ends.
    """
    data = ask_daemon(ctx, "POST", "/api/v1/devices", {"device_id": device_id, "name": name})
    _tell(data, as_json, data["token"])


def pair(ctx: typer.Context,
         minutes: Annotated[float, typer.Option(min=0.1, max=MOST_MINUTES,
                                                help="How long to wait for a device.")] = DEFAULT_MINUTES,
         wait: Annotated[bool, typer.Option(help="Stay until a device is in or the time is over.")] = True,
         as_json: AsJson = False) -> None:
    """Let the next device in that asks.

    The exit status is 1 when it waited and nobody came.
    """
    data = ask_daemon(ctx, "POST", "/api/v1/pairing", {"minutes": minutes})
    if not as_json:
        typer.echo(f"The next device that asks within {minutes:g} minutes is let in. Switch it on now.")
    # A window closes before the token of the device that it let in is on disk.
    while wait and (data["open"] or data["granting"]) and not data["paired"]:
        time.sleep(WATCH_SECONDS)
        data = ask_daemon(ctx, "GET", "/api/v1/pairing")
    if as_json:
        _print_json(data)
    if not wait:
        return
    if not data["paired"]:
        if not as_json:
            typer.echo("No device asked in this time.", err=True)
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"Paired: {data['paired']}.")


def _tell(data: Mapping[str, Any], as_json: bool, sentence: str) -> None:
    if as_json:
        _print_json(data)
    else:
        typer.echo(sentence)


def _print_json(data: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def _print_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=head in {"ID", "Request"})
    for row in rows:
        # As `Text`, since a device chose some of these: nothing in them may be taken for markup.
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def _when(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M") if seconds else "-"
