"""Questions spoken by the appliance's own kind of voice, for those who have no recording. Blocks."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np

from hotpind.config import Config
from hotpind.config.paths import models_dir
from hotpind.errors import PinError
from hotpind.pin.question import pin_pcm


def speak(texts: Sequence[str], config: Config) -> list[bytes]:
    """Let Piper say each text with the configured voice; 16 kHz 16-bit mono PCM each.

    Raises `hotpind.errors.ModelFileError` when the voice is not installed, `PinError` for a text without words.
    """
    # These load onnxruntime, which a command that plays recordings does not need.
    from hotpind.engines.voice import load
    from hotpind.models.catalogue import Role
    from hotpind.models.store import ModelStore

    files = ModelStore(models_dir(config)).resolve(config.tts.voice, Role.TTS)
    speaker = load(files.main, config.tts.threads or min(4, len(os.sched_getaffinity(0))))
    spoken = []
    for text in texts:
        sound = b"".join(speaker.speak(text, threading.Event()))
        if not sound:
            raise PinError(f"There is nothing to say in {text!r}; give it words.")
        spoken.append(pin_pcm(np.frombuffer(sound, "<i2"), speaker.rate))
    return spoken
