"""`hotpinctl doctor`: looks at everything the appliance needs and says what to do."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.text import Text

from hotpind.chat.key import SETTING, KeySource, read_key_file
from hotpind.chat.lookup import LookupResolver, NameLookup
from hotpind.cli.control import call, settings_of
from hotpind.config import Config
from hotpind.config.paths import models_dir, state_dir
from hotpind.engines.remote import ask
from hotpind.errors import ConfigError, ControlDenied, EngineUnavailable, HotpinError
from hotpind.models.catalogue import Role
from hotpind.models.store import ModelStore
from hotpind.speech.audio import PIN_RATE, read_wav
from hotpind.system.credential import PACKAGED_KEY
from hotpind.system.findings import (
    UNIT,
    Finding,
    Verdict,
    disk_findings,
    fault_findings,
    fine,
    machine_findings,
    parse_properties,
    sandbox_findings,
    unit_findings,
)
from hotpind.system.machine import read_machine, storage_of, tool_output

PROBE_S = 2.0
"""Seconds for the appliance to say on its port that it is there."""
_QUIET, _LOUD = 0.02, 0.999
"""Peak levels, as shares of full scale, of a recording that is too quiet or clipped."""
_COLOURS = {Verdict.FINE: "green", Verdict.HINT: "yellow", Verdict.FAULT: "bold red"}
_UNIT_PROPERTIES = "LoadState,ActiveState,Result,NRestarts,StatusText"

Wav = Annotated[Path | None, typer.Option("--wav", help="Also judge this recording.", metavar="FILE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(ctx: typer.Context, wav: Wav = None, as_json: AsJson = False) -> None:
    """Check the machine, the service, the models and the settings, and say what to do.

    The exit status is 1 when something is at fault.
    """
    found: list[Finding] = []
    try:
        config = settings_of(ctx)
        found.append(fine("settings", "valid"))
    except ConfigError as error:
        config = Config()
        found.append(Finding("settings", Verdict.FAULT, str(error), "mend the file; its defaults are used below"))
    found += _examine(config)
    if wav is not None:
        found += wav_findings(wav)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        _print(found)
    if any(finding.verdict is Verdict.FAULT for finding in found):
        raise typer.Exit(1)


def _examine(config: Config) -> Iterator[Finding]:
    properties = parse_properties(tool_output("systemctl", "show", UNIT, f"--property={_UNIT_PROPERTIES}"))
    installed = properties.get("LoadState") == "loaded"
    port = list(port_findings(config))
    running = any(finding.verdict is Verdict.FINE for finding in port)
    machine = list(machine_findings(read_machine(), datetime.now(UTC).year, running=running))
    yield from machine
    models, state = models_dir(config), state_dir(config)
    for place in one_for_each_disk(models, state):
        yield from disk_findings(place, storage_of(place) if place.exists() else None)
    unit = list(unit_findings(properties))
    yield from unit
    if installed:
        yield from sandbox_findings(tool_output("systemd-analyze", "security", "--no-pager", UNIT))
    yield from port
    if config.tls.enabled:
        yield from port_findings(config, encrypted=True)
    yield from model_findings(config, models)
    remote = list(remote_findings(config))
    yield from remote
    keys = list(key_findings(config, state, PACKAGED_KEY if installed else None))
    yield from keys
    yield from running_findings(config, [*machine, *unit, *remote, *keys])


def one_for_each_disk(*folders: Path) -> list[Path]:
    """Leave out the folders that lie on the file system of an earlier one."""
    found: dict[int, Path] = {}
    for folder in folders:
        there = next(each for each in (folder, *folder.parents) if each.exists())
        found.setdefault(there.stat().st_dev, folder)
    return list(found.values())


def port_findings(config: Config, *, encrypted: bool = False) -> Iterator[Finding]:
    """Ask who answers on the appliance's port; ``encrypted``: on that of TLS."""
    topic, setting, scheme = ("tls port", "tls.port", "https") if encrypted else ("port", "server.port", "http")
    host, port = config.server.host or "127.0.0.1", config.tls.port if encrypted else config.server.port
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    # The certificate is the appliance's own: pins know it by its fingerprint.
    context = ssl._create_unverified_context() if encrypted else None  # noqa: S323 - nothing secret is sent
    try:
        request = urllib.request.Request(f"{scheme}://{where}/health")  # noqa: S310 - the scheme is one of two
        with urllib.request.urlopen(request, timeout=PROBE_S, context=context) as answer:  # noqa: S310 - as above
            body = answer.read(65536)
    except urllib.error.HTTPError as error:
        body = error.read(65536)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ConnectionRefusedError):
            yield Finding(topic, Verdict.FAULT, f"nothing listens on {where}",
                          "start the appliance: systemctl start hotpind, or scripts/run")
        elif isinstance(reason, TimeoutError | socket.timeout):
            yield Finding(topic, Verdict.FAULT, f"whatever listens on {where} does not answer",
                          "systemctl restart hotpind")
        else:
            yield Finding(topic, Verdict.FAULT, f"whatever listens on {where} does not speak {scheme.upper()}",
                          f"another program has the port: sudo ss -ltnp 'sport = :{port}'")
        return
    if b"hotpin" in body:
        yield fine(topic, f"the appliance answers on {where}")
    else:
        yield Finding(topic, Verdict.FAULT, f"another program answers on {where}",
                      f"find it with sudo ss -ltnp 'sport = :{port}', or change {setting}")


def remote_findings(config: Config) -> Iterator[Finding]:
    """Ask the speech servers elsewhere whether they are there."""
    resolver = LookupResolver(NameLookup(), timeout_s=PROBE_S)
    for what, name, uri in (("hearing", "stt.uri", config.stt.uri), ("voice", "tts.uri", config.tts.uri)):
        if not uri:
            continue
        try:
            asyncio.run(ask(uri, resolver))
            yield fine(what, f"the server at {uri} answers")
        except EngineUnavailable as error:
            yield Finding(what, Verdict.FAULT, f"the server at {uri} {error}",
                          f"start it and see that this machine can reach it, or unset {name} to use the built-in one")


def key_findings(config: Config, state: Path, packaged: Path | None) -> Iterator[Finding]:
    """Tell whether there is a key for the cloud, without showing it."""
    if not config.chat.groq.enabled:
        yield fine("key", "the cloud is switched off; the local model answers")
        return
    try:
        if packaged is not None and read_key_file(packaged) is not None:
            yield fine("key", f"from {packaged}")
            return
        reading = KeySource(config.chat.groq.key_file, state).read()
    except (HotpinError, OSError) as error:
        yield Finding("key", Verdict.HINT, str(error), "run this command as root to see it")
        return
    if reading.problem:
        named = str(Path(config.chat.groq.key_file).expanduser()) if config.chat.groq.key_file else ""
        # A key that is set stands in the state directory and does not touch what the setting says.
        yield Finding("key", Verdict.FAULT, reading.problem,
                      f"mend that file or take {SETTING} out of the settings" if named and named in reading.problem
                      else "set it anew with `hotpinctl key set`")
    if reading.key is not None:
        yield fine("key", f"from {reading.source}")
    elif not reading.problem:
        yield Finding("key", Verdict.HINT, "there is no Groq key, so the local model answers everything",
                      "get one at https://console.groq.com/keys and run `hotpinctl key set`")


def running_findings(config: Config, known: Collection[Finding] = ()) -> Iterator[Finding]:
    """Ask the appliance, if it runs, what is wrong with it; what is among the ``known`` findings is not told again."""
    try:
        status = asyncio.run(asyncio.wait_for(call("GET", "/api/v1/status", config=config), PROBE_S))
    except ControlDenied as error:
        yield Finding("service", Verdict.HINT, "what the appliance itself says is wrong is not known", str(error))
        return
    except (HotpinError, TimeoutError):
        return  # what is wrong with the appliance itself is told elsewhere
    yield from fault_findings(status, known)


def wav_findings(path: Path) -> Iterator[Finding]:
    """Judge a recording: can it be understood, and is it what a pin would send?"""
    try:
        pcm, rate = read_wav(path.read_bytes())
    except (HotpinError, OSError) as error:
        yield Finding("recording", Verdict.FAULT, f"{path}: {error}")
        return
    seconds = len(pcm) / rate
    peak = float(np.abs(pcm.astype(np.int32)).max()) / 32768 if len(pcm) else 0.0
    yield fine("recording", f"{path}: {seconds:.1f} s at {rate} Hz, peak {peak:.0%} of full scale")
    if rate != PIN_RATE:
        yield Finding("recording", Verdict.HINT, f"a pin sends {PIN_RATE} Hz; this is converted",
                      f"sox {path.name} -r 16k -c 1 -b 16 pin.wav")
    if peak < _QUIET:
        yield Finding("recording", Verdict.FAULT, "it is almost silent", "speak closer or raise the gain")
    elif peak >= _LOUD:
        yield Finding("recording", Verdict.HINT, "it is clipped", "lower the gain")


def model_findings(config: Config, directory: Path) -> Iterator[Finding]:
    """Tell whether the files of the chosen models are there, by size and time: reading them takes long."""
    wanted = [(config.chat.local.model, Role.LLM)]
    if not config.stt.uri:
        wanted.append((config.stt.model, Role.STT))
    if not config.tts.uri:
        wanted.append((config.tts.voice, Role.TTS))
    found: list[str] = []
    try:
        store = ModelStore(directory)
        for name, role in wanted:
            if name in store.catalogue and store.installed(name) is None:
                yield Finding("models", Verdict.FAULT, f"{name} is not installed, or not as it was fetched",
                              f"hotpinctl models pull {name}")
                continue
            if name not in store.catalogue:
                store.resolve(name, role)
            found.append(name)
    except HotpinError as error:
        yield Finding("models", Verdict.FAULT, str(error), "`hotpinctl models list` shows what there is")
    if found:
        yield fine("models", f"{', '.join(found)} (`hotpinctl models verify` reads every byte)")


def _print(found: list[Finding]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in found:
        console.print(Text(f"{finding.verdict:5}  ", style=_COLOURS[finding.verdict])
                      + Text(f"{finding.topic}: {finding.text}", style=""))
        if finding.advice:
            console.print(Text(f"       -> {finding.advice}"))
