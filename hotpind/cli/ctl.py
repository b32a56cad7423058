"""The command ``hotpinctl``: the remote control of the appliance."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from hotpind import __version__
from hotpind.errors import ConfigError, HotpinError

if TYPE_CHECKING:
    from typer import _click as click

MENDING = frozenset({"doctor", "models"})
"""Commands that work, or report for themselves, when the settings are broken."""


@dataclass(frozen=True, slots=True)
class Home:
    """Where a command is, so that only the one that is asked for gets imported: `bench` alone takes half a second."""

    module: str
    summary: str
    """The first line of its help, for the list of commands."""
    attribute: str = "register"
    """A function that adds the command to an app, a command, or an app with commands of its own."""


COMMANDS = {
    "ask": Home("ask", "Ask the appliance a question as a pin would, and show the answer and its timings."),
    "simulate": Home("simulate", "Wear many pins at once, each asking its questions and listening to the answers, and "
                                 "sum up how they fared."),
    "bench": Home("bench", "Measure the appliance with recorded questions, as one or more devices that speak in real "
                           "time."),
    "status": Home("status", "Show whether the appliance works, who answers, and what a person should mend."),
    "turns": Home("status", "Show the last ten turns with their stage timings; nothing of what was said is kept."),
    "top": Home("top", "Show turns, times, queues, engines, devices, CPU and memory, until interrupted."),
    "say": Home("speech", "Have the appliance speak a text into a WAV file."),
    "transcribe": Home("speech", "Have the appliance write down what is said in a WAV file."),
    "doctor": Home("doctor", "Check the machine, the service, the models and the settings, and say what to do."),
    "logs": Home("logs", "Show the last turns with their stage timings."),
    "pair": Home("devices", "Let the next device in that asks.", "pair"),
    "models": Home("models", "The models that the engines run.", "models_app"),
    "devices": Home("devices", "The devices that may talk to the appliance.", "app"),
    "key": Home("key", "The API key of the cloud service (Groq).", "app"),
}


class Commands(TyperGroup):
    """The commands of `COMMANDS`, each imported when it is needed."""

    _listing = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; for the list of commands its first line is enough."""
        home = COMMANDS.get(cmd_name)
        if home is None:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=home.summary)
        return _load(cmd_name, home)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def _load(name: str, home: Home) -> click.Command:
    found = getattr(import_module(f"hotpind.cli.{home.module}"), home.attribute)
    if isinstance(found, typer.Typer):
        command = typer.main.get_command(found)
        command.name = name
        return command
    holder = typer.Typer(add_completion=False)
    # A group of its own, since an app with a single command would be that command.
    holder.callback()(lambda: None)
    if home.attribute == "register":
        found(holder)
    else:
        holder.command(name)(found)
    group = typer.main.get_group(holder)
    return group.commands[name]


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Control a Hotpin appliance, and talk to it without a pin.")


@app.callback()
def root(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings (TOML).")] = None,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and end.")] = False,
) -> None:
    """Read the settings once for every command."""
    if version:
        typer.echo(f"hotpinctl {__version__}")
        raise typer.Exit
    from hotpind.config import load_config

    if config is not None:
        # For the commands that read the settings for themselves.
        os.environ["HOTPIN_CONFIG"] = str(config)
    try:
        ctx.obj = load_config(config)
    except ConfigError as error:
        if ctx.invoked_subcommand not in MENDING:
            typer.echo(str(error), err=True)
            raise typer.Exit(78) from None


def main() -> None:
    """Run the command; our own errors are one sentence, never a traceback."""
    try:
        app()
    except HotpinError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
