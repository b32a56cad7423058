"""The self-test turn: a question in the appliance's own voice goes in as a pin's, and an answer must come out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp
import numpy as np

from hotpind.errors import EngineError, PinError
from hotpind.pin.client import Pin
from hotpind.pin.result import PinTurn
from hotpind.pin.turn import Limits
from hotpind.speech.audio import resample_16k
from hotpind.speech.tts import Synthesizer

QUESTION = "What is the capital of France?"
DEVICE = "hotpin-self-test"
DEADLINE_S = 90.0
ACK_S = 0.8
"""A pin gives its recording up when an acknowledgement takes a second."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """How it went."""

    turn: PinTurn | None
    trouble: str
    """What is wrong, one sentence; empty when all is well."""

    @property
    def passed(self) -> bool:
        """Tell whether a question was understood and answered aloud."""
        return not self.trouble

    def rows(self) -> list[tuple[str, str]]:
        """Return what to show: label and value."""
        if self.turn is None:
            return []
        timings = self.turn.timings
        server = self.turn.extra.get("timings", {})
        shown = [("question understood", server.get("transcript")), ("model's first token", server.get("first_token")),
                 ("first clause", server.get("first_clause")), ("first audio made", server.get("first_audio_ready")),
                 ("first audio at the pin", timings.first_audio), ("answer complete", timings.complete)]
        rows = [(label, f"{seconds:.3f} s") for label, seconds in shown if seconds is not None]
        return [("asked", QUESTION), ("understood", self.turn.transcript), ("answered", self.turn.response),
                ("by", str(self.turn.extra.get("backend", ""))), *rows]


async def self_test(url: str, token: str, voice: Synthesizer, fingerprint: str = "") -> SelfTest:
    """Ask the appliance at ``url`` a question as a pin; never raises for a failure of the appliance.

    ``fingerprint`` is the certificate's (SHA-256, hexadecimal digits) when the address is an https one.
    """
    tls = aiohttp.Fingerprint(bytes.fromhex(fingerprint)) if fingerprint else None
    try:
        async with asyncio.timeout(DEADLINE_S):
            spoken = np.frombuffer(await voice.whole(QUESTION), dtype="<i2")
            pcm = (await asyncio.to_thread(resample_16k, spoken, voice.rate)).astype("<i2").tobytes()
            async with Pin(url, DEVICE, token=token, ssl=tls, limits=Limits(ack_s=ACK_S)) as pin:
                turn = await pin.ask(pcm, realtime=False, tail_silence_s=0.4, drain="fast")
    except TimeoutError:
        return SelfTest(None, f"the self-test did not end within {DEADLINE_S:.0f} s")
    except (EngineError, PinError) as error:
        return SelfTest(None, str(error))
    if not turn.answered:
        return SelfTest(turn, f"no answer came: {turn.error}")
    if "france" not in turn.transcript.lower():
        return SelfTest(turn, f"the question {QUESTION!r} was understood as {turn.transcript!r}")
    if not turn.extra.get("backend"):
        return SelfTest(turn, "no language model answered, so a fixed sentence was spoken; the messages above name the "
                              "reason, and `hotpinctl doctor` says more")
    # A machine that is busy starting may leave a short hole in playback; the protocol is still kept.
    breaches = [each for each in turn.violations if not each.startswith("The sound stopped")]
    if breaches:
        return SelfTest(turn, f"the protocol was not kept: {breaches[0]}")
    return SelfTest(turn, "")
