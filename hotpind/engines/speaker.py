"""A Piper voice that speaks in pieces: the beginning of a clause is heard while the rest is still computed.

Piper computes a sentence as a whole. Half of its time goes into the last step, from latent frames to sound, and that
step can be taken piece by piece (`hotpind.engines.onnx_cut`): with a few frames more on both sides each piece comes out
as it would in the whole. Whether that holds is tried with each voice when it is loaded; one that fails speaks by
sentence.

Piper makes every sentence as loud as it can; a piece does not know how loud the rest will be. So a voice has one gain,
found when it is loaded, which gives way when a piece would be too loud for 16 bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from piper import PiperVoice, SynthesisConfig

_LOG = logging.getLogger(__name__)

Sound = npt.NDArray[np.float32]
"""Mono samples in about -1..1 at the voice's rate, shape (samples,)."""

LARGEST_FRAMES = 192
"""Latent frames of a piece at most; a frame is some 12 ms."""
SOFTEN_S = 0.005
"""In so many seconds the gain gives way."""


class Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime has no complete types
    """Gives the arena's memory back after each run, and can be stopped in the middle of one.

    Kept, the arena grows to the longest sentence's (345 MB after long answers); without one every tensor is mapped anew
    by the kernel, and a clause takes 100 ms in place of 60 (measured on two cores).
    """

    wanted_by: threading.Event | None = None
    """Who is spoken for: the event that tells that they are gone."""
    frugal = True
    """Whether the memory is given back."""
    _options: Any = None

    def run(self, output_names: Sequence[str] | None, input_feed: dict[str, Any], run_options: Any = None) -> Any:
        options = run_options or onnxruntime.RunOptions()
        if self.frugal:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._options = options
        try:
            if self.wanted_by is not None and self.wanted_by.is_set():
                options.terminate = True
            return super().run(output_names, input_feed, options)
        finally:
            self._options = None

    def stop(self, gone: threading.Event) -> None:
        """End the run that is under way for ``gone``, between two of its operators; it raises `Fail`."""
        options = self._options
        if options is not None and self.wanted_by is gone:
            options.terminate = True


@dataclass(frozen=True, slots=True)
class Steps:
    """How large pieces are: each is computed while the one before is heard."""

    first: int
    """Latent frames of the first piece."""
    growth: int
    """How many times as large as the one before a piece is, up to `LARGEST_FRAMES`."""


QUICK, STEADY, SLOW = Steps(32, 3), Steps(48, 2), Steps(LARGEST_FRAMES, 1)


def steps_for(share: float) -> Steps:
    """Return how large pieces are on a machine that takes ``share`` of a sound's duration to compute it.

    The second piece, with some frames on both sides of it, is ready when the first was heard up to a share of 0.22 with
    `QUICK` and of 0.33 with `STEADY`. What is left of the former is for moments when others compute, too.
    """
    return QUICK if share < 0.13 else STEADY if share < 0.33 else SLOW


@dataclass(frozen=True, slots=True)
class Pieces:
    """How a voice's latent frames become sound piece by piece."""

    session: Session
    cut: str
    """The session's input for latent frames."""
    inputs: Mapping[str, npt.NDArray[Any]]
    """Its other inputs: the speaker, of a voice that has several."""
    hop: int
    """Samples per frame."""
    neighbours: int
    """Frames needed on both sides of a piece."""
    steps: Steps

    def sound(self, latents: Sound, gone: threading.Event | None = None) -> Sound:
        """Compute the samples of latent frames, shape (1, channels, frames). Raises `Fail` when stopped."""
        self.session.wanted_by = gone
        sound: Sound = self.session.run(None, {self.cut: np.ascontiguousarray(latents), **self.inputs})[0]
        return sound.reshape(-1)

    def of(self, latents: Sound, gone: threading.Event | None = None) -> Iterator[Sound]:
        """Yield the samples of latent frames, shape (1, channels, frames), in pieces without seams."""
        frames = latents.shape[-1]
        start, size, least = 0, self.steps.first, self.steps.first
        while start < frames:
            # A rest shorter than the first piece would cost more for its neighbours than for itself.
            end = start + size if frames - start - size >= least else frames
            low = max(0, start - self.neighbours)
            # Kept from piece to piece, and given back with the last.
            self.session.frugal = end == frames
            sound = self.sound(latents[:, :, low:end + self.neighbours], gone)
            yield sound[(start - low) * self.hop:(end - low) * self.hop]
            start, size = end, min(self.steps.growth * size, LARGEST_FRAMES)


class Speaker:
    """Speaks texts with one voice; all calls but `stop` are made in one thread."""

    def __init__(self, voice: PiperVoice, style: SynthesisConfig, pieces: Pieces | None, gain: float) -> None:
        """Speak in ``pieces``, when the voice's session ends at the latent frames, else by sentence."""
        self._voice = voice
        self._style = style
        self._pieces = pieces
        self._gain = gain
        self.rate: int = voice.config.sample_rate
        """Samples per second."""
        self.names: list[str] = list(voice.config.speaker_id_map)
        """Names of the speakers, of a voice that has several."""

    def speak(self, text: str, gone: threading.Event) -> Iterator[bytes]:
        """Yield 16-bit mono PCM of the text, a piece at a time, until the client is ``gone``."""
        try:
            for phonemes in self._voice.phonemize(text):
                if phonemes:
                    for sound in self._sentence(self._voice.phonemes_to_ids(phonemes), gone):
                        if gone.is_set():
                            return
                        yield (np.clip(sound, -1.0, 1.0) * 32767).astype("<i2").tobytes()
        except Fail:
            # onnxruntime's way to end a run that was told to stop.
            if not gone.is_set():
                raise

    def stop(self, gone: threading.Event) -> None:
        """End what is being computed for ``gone``, from any thread."""
        self._voice.session.stop(gone)
        if self._pieces:
            self._pieces.session.stop(gone)

    def _sentence(self, ids: list[int], gone: threading.Event) -> Iterator[Sound]:
        self._voice.session.wanted_by = gone
        result = self._voice.phoneme_ids_to_audio(ids, self._style)
        gain = self._gain
        for sound in self._pieces.of(latents_of(result), gone) if self._pieces else (result,):
            lower = gain / max(1.0, gain * peak_of(sound))
            ramp = np.minimum(np.arange(len(sound), dtype=np.float32) / (SOFTEN_S * self.rate), 1.0)
            yield sound * (gain + (lower - gain) * ramp)
            gain = lower


def latents_of(result: Sound) -> Sound:
    """Return a voice's latent frames as the second half takes them; Piper leaves out dimensions of size one."""
    return result.reshape(1, result.shape[0], -1)


def peak_of(sound: Sound) -> float:
    """Return the largest magnitude of the samples."""
    return float(np.abs(sound).max(initial=0.0))


def give_back_memory() -> None:
    """Have the C library return what it keeps of freed memory.

    Some 40 MB after a sentence, and more after loading: a voice is in memory three times while it is cut.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
