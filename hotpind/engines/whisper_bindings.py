"""The two bindings of whisper.cpp, held to one contract (`hotpind.engines.recognizer.Recognizer`)."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import struct
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hotpind.engines.recognizer import SAMPLE_RATE, Audio, Decode
from hotpind.errors import ModelFileError

SHORTEST = int(1.05 * SAMPLE_RATE)
"""whisper.cpp refuses clips under a second; they are padded with silence to this many samples."""
PLAIN_WEIGHTS = frozenset({0, 1})
"""Values of ggml's ``ftype`` (the last of the eleven numbers after the magic) for 32 and 16 bit weights."""


def _padded(audio: Audio) -> Audio:
    if len(audio) >= SHORTEST:
        return audio
    return np.concatenate([audio, np.zeros(SHORTEST - len(audio), dtype=np.float32)])


class Pywhispercpp:
    """The maintained binding, with wheels for x86-64 and aarch64."""

    def __init__(self, model: Path, *, language: str, threads: int) -> None:
        """Load the model (a ggml file). Raises `ModelFileError` when whisper.cpp cannot read it."""
        from pywhispercpp.model import Model

        try:
            self._model = Model(
                str(model), n_threads=threads, language=language, redirect_whispercpp_logs_to=None,
                print_progress=False, print_realtime=False, no_timestamps=True, single_segment=True, no_context=True,
                suppress_blank=True, suppress_nst=True, temperature=0.0, temperature_inc=0.0, greedy={"best_of": 1})
        except (RuntimeError, ValueError, OSError) as error:
            raise ModelFileError(f"{model}: whisper.cpp cannot load this file ({error}); "
                                 "fetch it again with `hotpinctl models pull`") from None
        if not getattr(self._model, "_ctx", None):
            raise ModelFileError(f"{model}: whisper.cpp cannot load this file; fetch it again with "
                                 "`hotpinctl models pull`")

    def decode(self, audio: Audio, *, audio_ctx: int, max_tokens: int, cancelled: Callable[[], bool]) -> Decode:
        """See `Recognizer.decode`."""
        segments = self._model.transcribe(_padded(audio), audio_ctx=audio_ctx, max_tokens=max_tokens,
                                          abort_callback=cancelled, extract_probability=True)
        text = " ".join(segment.text for segment in segments if segment.text)
        scores = [math.log(segment.probability) for segment in segments if segment.probability > 0]
        return Decode(text.strip(), sum(scores) / len(scores) if scores else math.nan)


class WhisperCppPython:
    """The binding named in the product's design card (whisper.cpp of May 2023), through its ctypes layer.

    Its package imports librosa for a file interface that is not used here, and its wrapper defaults to temperature
    0.8; loading the ctypes module by itself avoids both.
    """

    def __init__(self, model: Path, *, language: str, threads: int) -> None:
        """Load the model (a ggml file). Raises `ModelFileError` or `ImportError`."""
        with model.open("rb") as file:
            header = struct.unpack("<12i", file.read(48).ljust(48, b"\0"))
        if header[11] not in PLAIN_WEIGHTS:
            raise ModelFileError(f"{model}: whisper-cpp-python takes 16 and 32 bit weights only, and these are "
                                 "quantised; choose stt.model = \"whisper-tiny.en\", or stt.engine = \"pywhispercpp\"")
        lib = self._lib = _ctypes_layer()
        self._context = lib.whisper_init_from_file(str(model).encode())
        if not self._context:
            raise ModelFileError(f"{model}: whisper.cpp cannot load this file; fetch it again with "
                                 "`hotpinctl models pull`")
        params = self._params = lib.whisper_full_default_params(0)  # WHISPER_SAMPLING_GREEDY
        self._language = language.encode()  # the library keeps the pointer
        params.language = self._language
        params.n_threads = threads
        params.print_progress = params.print_realtime = params.print_timestamps = False
        params.no_context = params.single_segment = params.suppress_blank = params.suppress_non_speech_tokens = True
        params.temperature = params.temperature_inc = 0.0
        params.greedy.best_of = 1

    def decode(self, audio: Audio, *, audio_ctx: int, max_tokens: int, cancelled: Callable[[], bool]) -> Decode:
        """See `Recognizer.decode`; this version of whisper.cpp cannot be interrupted, so ``cancelled`` is not asked."""
        lib, context = self._lib, self._context
        samples = np.ascontiguousarray(_padded(audio), dtype=np.float32)
        self._params.audio_ctx = audio_ctx
        self._params.max_tokens = max_tokens
        pointer = samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if lib.whisper_full(context, self._params, pointer, len(samples)) != 0:
            return Decode("", math.nan)
        texts, scores = [], []
        for segment in range(lib.whisper_full_n_segments(context)):
            texts.append(lib.whisper_full_get_segment_text(context, segment).decode(errors="replace").strip())
            for token in range(lib.whisper_full_n_tokens(context, segment)):
                probability = lib.whisper_full_get_token_p(context, segment, token)
                if probability > 0:
                    scores.append(math.log(probability))
        return Decode(" ".join(filter(None, texts)), sum(scores) / len(scores) if scores else math.nan)


def _ctypes_layer() -> Any:
    package = importlib.util.find_spec("whisper_cpp_python")
    folders = list(package.submodule_search_locations or []) if package else []
    if not folders:
        raise ImportError("stt.engine is \"whisper-cpp-python\", but that package is not installed: start the "
                          "appliance with scripts/run, which installs it, install hotpind[whisper-cpp-python] (with "
                          "CMAKE_POLICY_VERSION_MINIMUM=3.5 set), or choose \"pywhispercpp\"")
    spec = importlib.util.spec_from_file_location("whisper_cpp_python_ctypes", Path(folders[0]) / "whisper_cpp.py")
    assert spec is not None
    assert spec.loader is not None
    module: types.ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BINDINGS: dict[str, Callable[..., Any]] = {"pywhispercpp": Pywhispercpp, "whisper-cpp-python": WhisperCppPython}
"""By the name used in ``stt.engine``."""
