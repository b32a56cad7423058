"""`hotpinctl say` and `hotpinctl transcribe`: the appliance's voice and ears without a turn."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from hotpind.cli.control import fetch, settings_of
from hotpind.errors import AudioFormatError, OperatorError
from hotpind.speech.audio import read_wav

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("say")(say)
    app.command("transcribe")(transcribe)


def say(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help="What to say.")],
    out: Annotated[Path, typer.Option("--out", help="WAV file to write.")] = Path("said.wav"),
    as_json: AsJson = False,
) -> None:
    """Have the appliance speak a text into a WAV file."""
    content = asyncio.run(fetch("POST", "/api/v1/say", {"text": text}, config=settings_of(ctx)))
    try:
        out.write_bytes(content)
    except OSError as error:
        raise OperatorError(f"{out}: cannot be written ({error.strerror}); choose another file with --out") from None
    samples, rate = read_wav(content)
    seconds = len(samples) / rate
    typer.echo(json.dumps({"file": str(out), "seconds": round(seconds, 2), "rate": rate}) if as_json
               else f"{out}: {seconds:.1f} s of speech at {rate} Hz")


def transcribe(
    ctx: typer.Context,
    wav: Annotated[Path, typer.Argument(help="WAV file, any sample rate.")],
    as_json: AsJson = False,
) -> None:
    """Have the appliance write down what is said in a WAV file."""
    try:
        content = wav.read_bytes()
        read_wav(content)
    except OSError as error:
        raise OperatorError(f"{wav}: cannot be read ({error.strerror})") from None
    except AudioFormatError as error:
        raise OperatorError(f"{wav}: {error}") from None
    answer = asyncio.run(fetch("POST", "/api/v1/transcribe", config=settings_of(ctx), body=content))
    typer.echo(answer.decode() if as_json else json.loads(answer)["text"])
