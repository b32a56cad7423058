"""`hotpinctl ask`: a whole pin in software asks one question and shows how it fared."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hotpind.cli.control import settings_of
from hotpind.cli.guest import connected_pin
from hotpind.config import Config
from hotpind.errors import HotpinError, PinError
from hotpind.pin.home import Wishes
from hotpind.pin.image import ImageReply
from hotpind.pin.memory import memory_file
from hotpind.pin.question import LARGEST_PICTURE_BYTES, read_file, read_question
from hotpind.pin.result import PinTurn
from hotpind.spoken import speak

SESSION = "hotpinctl"
EXIT_UNANSWERED = 1
EXIT_USAGE = 2
TAIL_SILENCE_S = 0.4
"""As a person lets go of a button."""

Wav = Annotated[Path | None, typer.Option(help="The question as a WAV file of any sample rate and channels.")]
Spoken = Annotated[str, typer.Option("--text", help="The question as text; Piper speaks it.")]
Image = Annotated[Path | None, typer.Option(help="A picture (JPEG or PNG) to ask about.")]
Out = Annotated[Path | None, typer.Option(help="Where to put the spoken answer, a WAV file.")]
Url = Annotated[str, typer.Option(help="The appliance's address, such as http://192.168.1.20:8000; without it the "
                                       "appliance on this machine, the one remembered, or the one found by mDNS.")]
Session = Annotated[str, typer.Option(help="The session id to ask as.")]
Token = Annotated[str, typer.Option(help="The device's token; without it the one remembered, or pairing.")]
Fingerprint = Annotated[str, typer.Option(help="SHA-256 of the certificate to expect at an https address.")]
PairWait = Annotated[float, typer.Option(min=0, max=3600, help="Seconds for a person to let this pin in; 0: do not "
                                                               "pair.")]
Fast = Annotated[bool, typer.Option("--fast", help="Send the question faster than it was spoken.")]
Silence = Annotated[float, typer.Option(min=0, max=30, help="Seconds of a room's silence after the question.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in place of text.")]


@dataclass(frozen=True, slots=True)
class _Answer:
    url: str
    image: ImageReply | None
    turn: PinTurn | None
    """None when the picture was refused, so that nothing was asked."""
    violations: tuple[str, ...] = ()
    """Breaches of the protocol on the whole connection, pictures included."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ask")(ask)


def ask(ctx: typer.Context, wav: Wav = None, text: Spoken = "", image: Image = None, out: Out = None, url: Url = "",
        session: Session = SESSION, token: Token = "", fingerprint: Fingerprint = "", pair_wait: PairWait = 120.0,
        fast: Fast = False, silence: Silence = TAIL_SILENCE_S, as_json: AsJson = False) -> None:
    """Ask the appliance a question as a pin would, and show the answer and its timings.

    The exit status is 0 only when an answer came.
    """
    if (wav is None) == (not text):
        typer.echo("Give the question either as a recording with --wav or as text with --text.", err=True)
        raise typer.Exit(EXIT_USAGE)
    say: Callable[[str], None] = (lambda _: None) if as_json else (lambda sentence: typer.echo(sentence, err=True))
    try:
        config = settings_of(ctx)
        wishes = Wishes(session, memory_file(session, os.environ), url=url, token=token, fingerprint=fingerprint,
                        pair_wait_s=pair_wait)
        pcm = read_question(wav) if wav is not None else speak([text], config)[0]
        jpeg = read_file(image, LARGEST_PICTURE_BYTES) if image is not None else None
        answer = asyncio.run(_ask(wishes, config, pcm, jpeg, say, fast=fast, silence_s=silence))
        if out is not None and answer.turn is not None and answer.turn.wav:
            _write(out, answer.turn.wav)
    except HotpinError as error:
        _fail(str(error), as_json=as_json)
        raise typer.Exit(EXIT_UNANSWERED) from None
    if as_json:
        typer.echo(json.dumps(_as_json(answer, session), indent=2, ensure_ascii=False))
    else:
        _show(answer)
    if answer.turn is None or not answer.turn.answered:
        raise typer.Exit(EXIT_UNANSWERED)


async def _ask(wishes: Wishes, config: Config, pcm: bytes, jpeg: bytes | None, say: Callable[[str], None], *,
               fast: bool, silence_s: float) -> _Answer:
    async with connected_pin(wishes, config, say) as pin:
        reply = await pin.send_image(jpeg) if jpeg is not None else None
        if reply is not None and not reply.ok:
            return _Answer(str(pin.base), reply, None)
        turn = await pin.ask(pcm, realtime=not fast, tail_silence_s=silence_s)
        return _Answer(str(pin.base), reply, turn, (*pin.violations, *(reply.violations if reply else ())))


def _write(path: Path, wav: bytes) -> None:
    try:
        path.write_bytes(wav)
    except OSError as error:
        raise PinError(f"{path}: cannot be written: {error.strerror}.") from None


def _fail(sentence: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"answered": False, "error": sentence}, indent=2, ensure_ascii=False))
    else:
        typer.echo(sentence, err=True)


def _as_json(answer: _Answer, session: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"answered": False} if answer.turn is None else answer.turn.as_json()
    image = None
    if answer.image is not None:
        image = {"status": answer.image.status, "ok": answer.image.ok, "message": answer.image.message}
        if not answer.image.ok:
            turn["error"] = _refusal(answer.image)
    return {"url": answer.url, "session": session, "image": image, **turn, "violations": list(answer.violations)}


def _refusal(reply: ImageReply) -> str:
    return f"The picture was not taken ({reply.status}): {reply.message or 'no reason given'}"


def _show(answer: _Answer) -> None:
    console = Console(highlight=False)
    if answer.turn is None:
        assert answer.image is not None
        typer.echo(_refusal(answer.image), err=True)
        return
    turn = answer.turn
    # As `Text`: nothing that was said may be taken for markup.
    if turn.transcript:
        console.print(Text.assemble(("Heard   ", "dim"), turn.transcript), soft_wrap=True)
    if turn.response:
        console.print(Text.assemble(("Answer  ", "dim"), turn.response), soft_wrap=True)
    if turn.error:
        typer.echo(turn.error, err=True)
    console.print(_timings(turn))
    console.print(Text(_playback(turn)))
    for sentence in answer.violations:
        typer.echo(f"Protocol: {sentence}", err=True)


def _timings(turn: PinTurn) -> Table:
    table = Table(title="Seconds after the end of speech", title_justify="left", box=None, pad_edge=False)
    table.add_column("At the pin")
    table.add_column("", justify="right")
    table.add_column("In the appliance")
    table.add_column("", justify="right")
    times = turn.timings
    pin = [(label, seconds) for label, seconds in (
        ("recording confirmed", times.transcription), ("question understood", times.llm),
        ("answer begins", times.tts), ("first sound", times.first_audio), ("last sound", times.last_audio),
        ("complete", times.complete), ("slowest acknowledgement", turn.ack_max_s)) if seconds is not None]
    stages = turn.extra.get("timings")
    inside = [(str(name), seconds) for name, seconds in (stages.items() if isinstance(stages, dict) else ())
              if isinstance(seconds, int | float)]
    for row in range(max(len(pin), len(inside))):
        cells: list[str] = []
        for column in (pin, inside):
            cells += [column[row][0], f"{column[row][1]:.3f}"] if row < len(column) else ["", ""]
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _playback(turn: PinTurn) -> str:
    report = turn.playback
    if report is None or not report.sample_rate:
        return "Nothing was played."
    parts = [f"Played {report.received_s:.1f} s at {report.sample_rate} Hz, at most {report.most_ahead_s:.1f} s ahead"]
    if report.underruns:
        parts.append(f"{len(report.underruns)} gaps of {report.underrun_s:.2f} s together")
    if report.dropped_bytes or report.cut_bytes:
        parts.append(f"{report.dropped_bytes + report.cut_bytes} bytes lost")
    if len(parts) == 1:
        parts.append("without a gap")
    return ", ".join(parts) + "."
