"""The administrator's view of the running appliance: status, last turns, figures, speech without a device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from hotpind.errors import AudioFormatError, DeviceError
from hotpind.speech.audio import read_wav, resample_16k, wav_header
from hotpind.speech.stt import Transcriber
from hotpind.speech.tts import Synthesizer
from hotpind.web.auth import Gatekeeper
from hotpind.web.metrics import Metrics
from hotpind.web.replies import read_body, read_json, reply

LONGEST_TEXT = 1000
LONGEST_WAV = 12_000_000
"""Bytes: a minute of 48 kHz stereo."""
LONGEST_S = 60
WAV_DEADLINE_S = 30.0


def add_routes(app: web.Application, gatekeeper: Gatekeeper, *, status: Callable[[], dict[str, Any]],
               turns: Callable[[], list[dict[str, Any]]], metrics: Metrics, transcriber: Transcriber,
               voice: Synthesizer) -> None:
    """Serve the routes; all are the administrator's."""
    async def get_status(_: web.Request) -> web.Response:
        return reply(status())

    async def get_turns(_: web.Request) -> web.Response:
        return reply({"turns": turns()})

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def say(request: web.Request) -> web.Response:
        pcm = await voice.read_out(await _text_to_say(request))
        return web.Response(body=wav_header(voice.rate, len(pcm)) + pcm, content_type="audio/wav")

    async def transcribe(request: web.Request) -> web.Response:
        pcm = await _recording(request)
        return reply({"text": await transcriber.transcribe(pcm), "seconds": round(len(pcm) / 32000, 2)})

    for method, path, handler in (("GET", "/api/v1/status", get_status), ("GET", "/api/v1/turns", get_turns),
                                  ("GET", "/metrics", get_metrics), ("POST", "/api/v1/say", say),
                                  ("POST", "/api/v1/transcribe", transcribe)):
        app.router.add_route(method, path, gatekeeper.guarded(handler))


async def _text_to_say(request: web.Request) -> str:
    text = (await read_json(request)).get("text")
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT:
        raise DeviceError(f"Give the text to say as {{\"text\": \"...\"}}, at most {LONGEST_TEXT} characters.")
    return " ".join(text.split())


async def _recording(request: web.Request) -> bytes:
    """Read a WAV file from the request as 16-bit 16 kHz mono PCM."""
    content = await read_body(request, most=LONGEST_WAV, seconds=WAV_DEADLINE_S)
    try:
        samples, rate = await asyncio.to_thread(read_wav, content)
    except AudioFormatError as error:
        raise DeviceError(str(error)) from None
    if len(samples) / rate > LONGEST_S:
        raise DeviceError(f"The recording is longer than {LONGEST_S} s; cut it.", status=413)
    return (await asyncio.to_thread(resample_16k, samples, rate)).astype("<i2").tobytes()
