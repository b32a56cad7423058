"""Loads a Piper voice: cuts, optimises, tries and warms it, or takes what an earlier start has made of it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from piper import PiperVoice, SynthesisConfig
from piper.config import PiperConfig

from hotpind.engines.child import core_of_each
from hotpind.engines.onnx_cut import SPEAKER, Halves, cut
from hotpind.engines.prepared import Recipe, Shelf, Tried
from hotpind.engines.speaker import (
    SLOW,
    STEADY,
    Pieces,
    Session,
    Sound,
    Speaker,
    give_back_memory,
    latents_of,
    peak_of,
    steps_for,
)
from hotpind.errors import ModelFileError

_LOG = logging.getLogger(__name__)

NEIGHBOURS = (12, 24)
"""Frames that a piece may need on both sides; medium voices need 12 (with 8 they differ by 0.0015)."""
ALIKE = 1e-3
"""Difference between pieces and whole that nobody can hear, as a part of full scale: 10 bits below 16."""
HEADROOM = 0.85
"""Peak of an average sentence, as a part of full scale; Piper's own would be 1."""
WARM_UP = ("Yes.", "How are you today, and what can I do for you?")
"""The first run plans memory and kernels, and how loud a voice is has to be heard."""


def load(model: Path, threads: int, *, speaker: int = 0, length_scale: float = 1.0, shelf: Shelf | None = None,
         cpu_clock: Callable[[], float] = time.process_time) -> Speaker:
    """Load a voice with sessions tuned for short texts on few cores, and warm it.

    ``shelf`` holds it ready made, or is given what comes out, and has to be settled then. ``cpu_clock`` counts the
    seconds that this process computed, in all threads. Raises `ModelFileError` when onnxruntime or Piper cannot read
    the files, or the voice has no such ``speaker``.
    """
    shelf = shelf or Shelf(None, {})
    try:
        settings = PiperConfig.from_dict(json.loads(model.with_name(model.name + ".json").read_text("utf-8")))
    except FileNotFoundError as error:
        raise _without(error) from None
    except Exception as error:  # noqa: BLE001 - a broken description raises whatever it likes
        raise _broken(model, error) from None
    several = settings.num_speakers > 1
    if speaker and speaker >= settings.num_speakers:
        raise ModelFileError(f"tts.speaker is {speaker}, but the voice {model.stem} has speakers 0 to "
                             f"{settings.num_speakers - 1}")
    style = SynthesisConfig(speaker_id=speaker if several else None, length_scale=length_scale)
    return (_prepared(shelf, settings, style, threads, cpu_clock)
            or _in_halves(model, settings, style, threads, shelf, cpu_clock)
            or _by_sentence(model, settings, style, threads))


def recipe(model: Path, speaker: int, length_scale: float) -> Recipe:
    """Return what decides how a voice is prepared. Raises `ModelFileError` when there is none."""
    try:
        found = model.stat()
    except FileNotFoundError as error:
        raise _without(error) from None
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "speaker": speaker, "length_scale": length_scale,
            "onnxruntime": onnxruntime.__version__}


def _without(error: FileNotFoundError) -> ModelFileError:
    return ModelFileError(f"{error.filename}: a Piper voice needs its .onnx file and the .onnx.json beside it")


def _broken(model: Path, error: Exception) -> ModelFileError:
    return ModelFileError(f"{model}: this voice cannot be loaded ({str(error)[:200]}); fetch it again with "
                          "`hotpinctl models pull`")


def _session(model: str, threads: int, optimised: Path | None = None) -> Session:
    """Load a model; ``optimised`` is where it is written to as onnxruntime has rearranged it for any machine."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Workers that sleep at each of some hundred operators cost a clause a fifth of its time; ones that go on
    # spinning would take the cores from the recogniser and the language model between two sentences.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if cores := core_of_each(threads):
        # The first is for the thread that calls; onnxruntime counts cores from 1.
        options.add_session_config_entry("session.intra_op_thread_affinities",
                                         ";".join(str(core + 1) for core in cores[1:]))
    # Every sentence has another length, and the plan of its memory would be kept for each.
    options.enable_mem_pattern = False
    if optimised:
        options.optimized_model_filepath = str(optimised)
        # The next level is for this processor only, and adds nothing to the first half.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return Session(model, sess_options=options, providers=["CPUExecutionProvider"])


def _session_of(model: bytes, threads: int, optimised: Path | None = None) -> Session:
    # Given bytes, onnxruntime would keep them.
    with os.fdopen(os.memfd_create("voice"), "wb") as file:
        file.write(model)
        file.flush()
        return _session(f"/proc/self/fd/{file.fileno()}", threads, optimised)


def _prepared(shelf: Shelf, settings: PiperConfig, style: SynthesisConfig, threads: int,
              cpu_clock: Callable[[], float]) -> Speaker | None:
    """Return a speaker of what is on the shelf."""
    found = shelf.find()
    if found is None:
        return None
    frames, sound, tried = found
    try:
        voice = PiperVoice(session=_session(str(frames), threads), config=settings)
        pieces = replace(_pieces(_session(str(sound), threads), tried.cut, style), neighbours=tried.neighbours)
        latents = latents_of(voice.phoneme_ids_to_audio(_warm_up(voice)[-1], style))
        samples, share = _timed(pieces, latents, threads / settings.sample_rate, cpu_clock)
    except Exception as error:  # noqa: BLE001 - one made by another version, say; it is made again
        _LOG.debug("the prepared voice cannot be used: %s", error)
        return None
    return Speaker(voice, style, replace(pieces, hop=len(samples) // latents.shape[-1],
                                         steps=steps_for(share)), tried.gain)


def _in_halves(model: Path, settings: PiperConfig, style: SynthesisConfig, threads: int, shelf: Shelf,
               cpu_clock: Callable[[], float]) -> Speaker | None:
    """Cut the voice, and return a speaker whose pieces sound as the whole does; None when there is none."""
    try:
        halves = cut(model.read_bytes())
    except FileNotFoundError as error:
        raise _without(error) from None
    try:
        speaking = _in_pieces(halves, settings, style, threads, shelf, cpu_clock) if halves else None
    except Exception as error:  # noqa: BLE001 - a voice that cannot be cut after all may be whole and well
        _LOG.debug("%s cannot be cut: %s", model.name, error)
        speaking = None
    finally:
        halves = None
        give_back_memory()
    if speaking is None:
        shelf.give_up("the voice speaks by sentence")
    return speaking


def _in_pieces(halves: Halves, settings: PiperConfig, style: SynthesisConfig, threads: int, shelf: Shelf,
               cpu_clock: Callable[[], float]) -> Speaker | None:
    """Return a speaker whose pieces sound as the whole does; None when there is none."""
    shelf.clear(len(halves.frames) + len(halves.sound))
    try:
        frames = _session_of(halves.frames, threads, shelf.frames)
    except Exception as error:  # noqa: BLE001 - of a full disk, or of a voice that fails without being kept, too
        shelf.give_up(str(error))
        frames = _session_of(halves.frames, threads)
    voice = PiperVoice(session=frames, config=settings)
    whole = _pieces(_session_of(halves.sound, threads), halves.cut, style)
    peaks = []
    for ids in _warm_up(voice):
        latents = latents_of(voice.phoneme_ids_to_audio(ids, style))
        sound, share = _timed(whole, latents, threads / settings.sample_rate, cpu_clock)
        peaks.append(peak_of(sound))
    for neighbours in NEIGHBOURS:
        pieces = replace(whole, hop=len(sound) // latents.shape[-1], neighbours=neighbours, steps=STEADY)
        joined = np.concatenate(list(pieces.of(latents)))
        if joined.shape == sound.shape and peak_of(joined - sound) <= ALIKE:
            shelf.put(halves.sound, Tried(halves.cut, neighbours, gain := _gain(peaks)))
            return Speaker(voice, style, replace(pieces, steps=steps_for(share)), gain)
    return None


def _pieces(session: Session, cut_at: str, style: SynthesisConfig) -> Pieces:
    inputs = {} if style.speaker_id is None else {SPEAKER: np.array([style.speaker_id], dtype=np.int64)}
    return Pieces(session, cut_at, inputs, hop=0, neighbours=0, steps=SLOW)


def _timed(pieces: Pieces, latents: Sound, core_s: float, cpu_clock: Callable[[], float]) -> tuple[Sound, float]:
    """Compute the sound of latent frames; tell how much of its duration that took.

    ``core_s``: seconds that all cores together compute while a sample is heard.
    """
    began = cpu_clock()
    sound = pieces.sound(latents)
    return sound, (cpu_clock() - began) / (len(sound) * core_s)


def _by_sentence(model: Path, settings: PiperConfig, style: SynthesisConfig, threads: int) -> Speaker:
    try:
        voice = PiperVoice(session=_session(str(model), threads), config=settings)
        peaks = [peak_of(voice.phoneme_ids_to_audio(ids, style)) for ids in _warm_up(voice)]
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many unrelated classes for a broken file
        raise _broken(model, error) from None
    return Speaker(voice, style, None, _gain(peaks))


def _warm_up(voice: PiperVoice) -> list[list[int]]:
    return [voice.phonemes_to_ids(phonemes) for text in WARM_UP for phonemes in voice.phonemize(text)]


def _gain(peaks: Sequence[float]) -> float:
    return HEADROOM * len(peaks) / max(sum(peaks), 1e-6)
