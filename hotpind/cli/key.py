"""`hotpinctl key`: the API key of the cloud service, stored, checked and removed without ever being shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hotpind.chat.key import (
    CREDENTIAL,
    VARIABLE,
    KeyReading,
    KeySource,
    Secret,
    checked_key,
    read_key_file,
    remove_key,
    store_key,
)
from hotpind.cli.control import call_now, settings_of
from hotpind.config import Config
from hotpind.config.paths import state_dir
from hotpind.errors import BackendError, ControlDenied, HotpinError, KeyRejected, OperatorError

PACKAGED_SETTINGS = Path("/etc/hotpin")
"""The service's unit loads its credential from here (LoadCredential=)."""
PACKAGED_STATE = Path("/var/lib/hotpin")
"""The service's state directory; a key put here is used by the running service at once."""
LONGEST_INPUT = 4096
GROQ = "groq"
"""The backend's name in the daemon's status."""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of text.")]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The API key of the cloud service (Groq).")


@dataclass(frozen=True, slots=True)
class Places:
    """Where the key of this machine's appliance is kept."""

    state: Path
    """Directory that the daemon looks into while it runs."""
    credential: Path | None
    """Directory that the unit's credential is loaded from at its start; None without the package."""


def places(config: Config, environ: Mapping[str, str] = os.environ, *, settings: Path = PACKAGED_SETTINGS,
           state: Path = PACKAGED_STATE) -> Places:
    """Return the packaged service's places when it is installed and nothing else is configured, else this user's.

    The packaged `hotpinctl` names the service's state directory in $STATE_DIRECTORY, as systemd does for the service.
    """
    if environ.get("STATE_DIRECTORY") == str(state):
        return Places(state_dir(config, environ), settings)
    if config.paths.state or environ.get("STATE_DIRECTORY") or not (settings.is_dir() and state.is_dir()):
        return Places(state_dir(config, environ), None)
    return Places(state, settings)


@app.command("set")
def set_key(ctx: typer.Context,
            check: Annotated[bool, typer.Option(help="Ask the service whether it takes the key.")] = True,
            as_json: AsJson = False) -> None:
    """Read a key from the terminal (it is not shown) or from standard input, check it and store it.

    A running appliance uses it within five seconds; no restart is needed.
    """
    with _outcome(as_json) as outcome:
        config = settings_of(ctx)
        key = checked_key(_read())
        check_result = _check(config, key) if check else None
        where = places(config)
        # The state directory comes last: what is newest there is what the running service uses.
        stored = [str(store_key(directory, key)) for directory in filter(None, (where.credential, where.state))]
        shadow = "" if where.credential else _shadow(config, where.state, key)
        outcome.update({"stored": stored, "shadowed_by": shadow, **_as_json(check_result)})
        if as_json:
            return
        if check_result is not None and check_result.note:
            typer.echo(check_result.note, err=True)
        if shadow == f"${VARIABLE}":
            typer.echo(f"The key is stored, but {shadow} is set here and comes first: an appliance that has it in its "
                       "environment uses that one. Unset it to use the stored key.")
        elif shadow:
            typer.echo(f"The key is stored but not used, since the one from {shadow} comes first. Put the key there, "
                       "or take that setting away.")
        else:
            typer.echo("The key is stored; a running appliance uses it within five seconds.")


@app.command()
def status(ctx: typer.Context,
           check: Annotated[bool, typer.Option("--check", help="Also ask the service about it.")] = False,
           as_json: AsJson = False) -> None:
    """Say whether there is a key, where it comes from, and what the running appliance makes of it."""
    with _outcome(as_json) as outcome:
        config = settings_of(ctx)
        reading = _reading(config)
        state, view = _daemons_view(config)
        outcome.update({"key": reading.key is not None, "source": reading.source, "problem": reading.problem,
                        "daemon": state})
        if not as_json:
            _print_reading(reading)
            typer.echo(view)
        if check and reading.key:
            check_result = _check(config, reading.key)
            outcome.update(_as_json(check_result))
            if not as_json:
                typer.echo(check_result.note or "The service takes the key.", err=bool(check_result.note))
        if reading.key is None:
            raise typer.Exit(1)


@app.command()
def remove(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Remove the stored key; a running appliance goes on with its local model within five seconds."""
    with _outcome(as_json) as outcome:
        config = settings_of(ctx)
        where = places(config)
        if where.credential:
            removed = remove_key(where.credential)
            removed = _holds_a_key(where.state / CREDENTIAL) or removed
            # The running service still has the credential it was started with; an empty newer file overrules it.
            store_key(where.state, None)
        else:
            removed = remove_key(where.state)
        left = KeySource(config.chat.groq.key_file, where.state).read()
        outcome.update({"removed": removed, "left": left.source if left.key else ""})
        if as_json:
            return
        typer.echo("The key is removed." if removed else "There was no stored key.")
        if left.key:
            typer.echo(f"Another key is still there, from {left.source}.")


@dataclass(frozen=True, slots=True)
class _Check:
    """What the service said about a key."""

    accepted: bool | None
    """None when it could not be asked."""
    note: str = ""
    """A sentence for the person, when there is something to know."""


def _as_json(check: _Check | None) -> dict[str, Any]:
    return {"accepted": None if check is None else check.accepted, "note": "" if check is None else check.note}


@contextlib.contextmanager
def _outcome(as_json: bool) -> Iterator[dict[str, Any]]:
    """Collect what is to be printed as JSON, with what went wrong in it; as text, errors go their usual way."""
    outcome: dict[str, Any] = {}
    code = 0
    try:
        yield outcome
    except typer.Exit as leave:
        code = leave.exit_code
    except HotpinError as error:
        if not as_json:
            raise
        outcome["error"] = str(error)
        code = 1
    if as_json:
        typer.echo(json.dumps(outcome, indent=2, ensure_ascii=False))
    if code:
        raise typer.Exit(code)


def _read() -> str:
    """Read the key; never from the arguments, which every user of the machine can see."""
    if sys.stdin.isatty():
        return str(typer.prompt("Groq API key (it is not shown)", hide_input=True, err=True))
    return sys.stdin.readline(LONGEST_INPUT)


def _holds_a_key(path: Path) -> bool:
    try:
        return bool(path.read_bytes().strip())
    except OSError:
        return False


def _shadow(config: Config, state: Path, key: Secret) -> str:
    """Return where another key comes from that counts before the stored one; empty when the stored one is used."""
    reading = KeySource(config.chat.groq.key_file, state).read()
    return reading.source if reading.key is not None and reading.key != key else ""


def _reading(config: Config) -> KeyReading:
    where = places(config)
    if where.credential:
        path = where.credential / CREDENTIAL
        if path.exists() and not os.access(path, os.R_OK):
            return KeyReading(None, "", f"{path}: only root may see whether there is a key; try with sudo")
        try:
            key = read_key_file(path)
        except HotpinError as error:
            return KeyReading(None, "", str(error))
        if key:
            return KeyReading(key, str(path))
    return KeySource(config.chat.groq.key_file, where.state).read()


def _print_reading(reading: KeyReading) -> None:
    if reading.problem:
        typer.echo(reading.problem)
    if reading.key:
        typer.echo(f"There is a key: from {reading.source}.")
    elif not reading.problem:
        typer.echo("There is no key here; set one with `hotpinctl key set`.")


def _check(config: Config, key: Secret) -> _Check:
    """Ask the service; a rejected key is an error, a service out of reach is not."""
    # The service's client library takes long to import.
    from hotpind.chat.groq_backend import check_key

    groq = config.chat.groq
    try:
        served = asyncio.run(check_key(key, groq.base_url, connect_timeout_s=max(5.0, groq.connect_timeout_s)))
    except KeyRejected:
        raise OperatorError("Groq rejects this key; copy it again from https://console.groq.com/keys") from None
    except BackendError as error:
        return _Check(None, f"The key could not be checked: {error}.")
    missing = [model.name for model in groq.models if model.name not in served]
    if len(missing) == len(groq.models):
        return _Check(True, f"Groq takes the key but serves none of {', '.join(missing)}; choose others in "
                            "chat.groq.models.")
    return _Check(True)


def _daemons_view(config: Config) -> tuple[str, str]:
    """Return the state that the running daemon gives Groq, empty without one, and a sentence about it."""
    try:
        backends = call_now("GET", "/api/v1/status", None, config=config)["backends"]
        row = next(row for row in backends if row["name"] == GROQ)
    except ControlDenied as error:
        return "", str(error)
    except (HotpinError, KeyError, TypeError):
        return "", "The appliance does not run."
    except StopIteration:
        return "", "The running appliance does not use Groq (chat.groq.enabled is false)."
    detail = f" ({row['detail']})." if row["detail"] else "."
    return str(row["state"]), f"The running appliance: groq is {row['state']}{detail}"
