"""A Piper voice that speaks in pieces: a clause's first half second is heard while the rest is still computed.

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
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from piper import PiperVoice, SynthesisConfig
from piper.config import PiperConfig

from hotpind.engines.onnx_cut import SPEAKER, Halves, cut
from hotpind.errors import ModelFileError

_LOG = logging.getLogger(__name__)

Sound = npt.NDArray[np.float32]
"""Mono samples in about -1..1 at the voice's rate, shape (samples,)."""

FIRST_FRAMES, LARGEST_FRAMES = 48, 192
"""Latent frames of the first piece, and of later ones at most; a frame is some 12 ms. Each piece has twice as many as
the one before: it is computed while that is heard."""
NEIGHBOURS = (12, 24)
"""Frames that a piece may need on both sides; medium voices need 12 (with 8 they differ by 0.0015)."""
ALIKE = 1e-3
"""Difference between pieces and whole that nobody can hear, as a part of full scale: 10 bits below 16."""
QUICK = 0.35
"""A piece twice as long as the one before is ready in time when computing takes less than this of its duration."""
HEADROOM = 0.85
"""Peak of an average sentence, as a part of full scale; Piper's own would be 1."""
SOFTEN_S = 0.005
"""In so many seconds the gain gives way."""
WARM_UP = ("Yes.", "How are you today, and what can I do for you?")
"""The first run plans memory and kernels, and how loud a voice is has to be heard."""


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
    first: int
    """Frames of the first piece."""

    def sound(self, latents: Sound, gone: threading.Event | None = None) -> Sound:
        """Compute the samples of latent frames, shape (1, channels, frames). Raises `Fail` when stopped."""
        self.session.wanted_by = gone
        sound: Sound = self.session.run(None, {self.cut: np.ascontiguousarray(latents), **self.inputs})[0]
        return sound.reshape(-1)

    def of(self, latents: Sound, gone: threading.Event | None = None) -> Iterator[Sound]:
        """Yield the samples of latent frames, shape (1, channels, frames), in pieces without seams."""
        frames = latents.shape[-1]
        start, size = 0, self.first
        while start < frames:
            # A rest shorter than the first piece would cost more for its neighbours than for itself.
            end = start + size if frames - start - size >= self.first else frames
            low = max(0, start - self.neighbours)
            # Kept from piece to piece, and given back with the last.
            self.session.frugal = end == frames
            sound = self.sound(latents[:, :, low:end + self.neighbours], gone)
            yield sound[(start - low) * self.hop:(end - low) * self.hop]
            start, size = end, min(2 * size, LARGEST_FRAMES)


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


def load(model: Path, threads: int, *, speaker: int = 0, length_scale: float = 1.0,
         cpu_clock: Callable[[], float] = time.process_time) -> Speaker:
    """Load a voice with sessions tuned for short texts on few cores, and warm it.

    ``cpu_clock`` counts the seconds that this process computed, in all threads. Raises `ModelFileError` when
    onnxruntime or Piper cannot read the files, or the voice has no such ``speaker``.
    """
    try:
        settings = PiperConfig.from_dict(json.loads(model.with_name(model.name + ".json").read_text("utf-8")))
        halves = cut(model.read_bytes())
    except FileNotFoundError as error:
        raise ModelFileError(f"{error.filename}: a Piper voice needs its .onnx file and the .onnx.json "
                             "beside it") from None
    except Exception as error:  # noqa: BLE001 - a broken description raises whatever it likes
        raise _broken(model, error) from None
    several = settings.num_speakers > 1
    if speaker and speaker >= settings.num_speakers:
        raise ModelFileError(f"tts.speaker is {speaker}, but the voice {model.stem} has speakers 0 to "
                             f"{settings.num_speakers - 1}")
    style = SynthesisConfig(speaker_id=speaker if several else None, length_scale=length_scale)
    if halves:
        try:
            if speaking := _in_pieces(halves, settings, style, threads, cpu_clock):
                return speaking
        except Exception as error:  # noqa: BLE001 - a voice that cannot be cut after all may be whole and well
            _LOG.debug("%s cannot be cut: %s", model.name, error)
        finally:
            give_back_memory()
    try:
        return _by_sentence(PiperVoice(session=_session(str(model), threads), config=settings), style)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many unrelated classes for a broken file
        raise _broken(model, error) from None


def _broken(model: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{model}: this voice cannot be loaded ({str(error)[:200]}); fetch it again with "
                          "`hotpinctl models pull`")


def give_back_memory() -> None:
    """Have the C library return what it keeps of freed memory.

    Some 40 MB after a sentence, and more after loading: a voice is in memory three times while it is cut.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _session(model: str, threads: int) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Workers that sleep at each of some hundred operators cost a clause a fifth of its time; ones that go on
    # spinning would take the cores from the recogniser and the language model between two sentences.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Every sentence has another length, and the plan of its memory would be kept for each.
    options.enable_mem_pattern = False
    return Session(model, sess_options=options, providers=["CPUExecutionProvider"])


def _session_of(model: bytes, threads: int) -> Session:
    # Given bytes, onnxruntime would keep them.
    with os.fdopen(os.memfd_create("voice"), "wb") as file:
        file.write(model)
        file.flush()
        return _session(f"/proc/self/fd/{file.fileno()}", threads)


def _in_pieces(halves: Halves, settings: PiperConfig, style: SynthesisConfig, threads: int,
               cpu_clock: Callable[[], float]) -> Speaker | None:
    """Return a speaker whose pieces sound as the whole does; None when there is none."""
    voice = PiperVoice(session=_session_of(halves.frames, threads), config=settings)
    inputs = {} if style.speaker_id is None else {SPEAKER: np.array([style.speaker_id], dtype=np.int64)}
    whole = Pieces(_session_of(halves.sound, threads), halves.cut, inputs, hop=0, neighbours=0, first=LARGEST_FRAMES)
    peaks = []
    for ids in _warm_up(voice):
        latents = latents_of(voice.phoneme_ids_to_audio(ids, style))
        began = cpu_clock()
        sound = whole.sound(latents)
        computed_s = (cpu_clock() - began) / threads
        peaks.append(peak_of(sound))
    quick = computed_s < QUICK * len(sound) / settings.sample_rate
    for neighbours in NEIGHBOURS:
        pieces = replace(whole, hop=len(sound) // latents.shape[-1], neighbours=neighbours, first=FIRST_FRAMES)
        joined = np.concatenate(list(pieces.of(latents)))
        if joined.shape == sound.shape and peak_of(joined - sound) <= ALIKE:
            return Speaker(voice, style, pieces if quick else replace(pieces, first=LARGEST_FRAMES), _gain(peaks))
    return None


def _by_sentence(voice: PiperVoice, style: SynthesisConfig) -> Speaker:
    return Speaker(voice, style, None, _gain([peak_of(voice.phoneme_ids_to_audio(ids, style))
                                              for ids in _warm_up(voice)]))


def _warm_up(voice: PiperVoice) -> list[list[int]]:
    return [voice.phonemes_to_ids(phonemes) for text in WARM_UP for phonemes in voice.phonemize(text)]


def _gain(peaks: Sequence[float]) -> float:
    return HEADROOM * len(peaks) / max(sum(peaks), 1e-6)
