"""Human speech with its transcriptions, sounds that are not speech, and the word error rate."""

from __future__ import annotations

import re
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA = Path("/usr/share/pocketsphinx/test/data")
RATE = 16_000


@dataclass(frozen=True)
class Recording:
    """A recording as 16 kHz PCM with what is said in it."""

    name: str
    pcm: bytes
    text: str

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / RATE


def read_pcm(path: Path) -> bytes:
    """Return a 16 kHz mono WAV file's samples."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        return bytes(file.readframes(file.getnframes()))


def _transcriptions(file: Path) -> dict[str, str]:
    found = {}
    for line in file.read_text().splitlines():
        match = re.match(r"(?:<s>)?\s*(.*?)\s*(?:</s>)?\s*\((\S+)\)\s*$", line)
        if match:
            found[match.group(2)] = match.group(1)
    return found


def librivox() -> list[Recording]:
    """Five sentences read aloud, 3 to 7 s each."""
    return [Recording(name, read_pcm(DATA / "librivox" / f"{name}.wav"), text)
            for name, text in sorted(_transcriptions(DATA / "librivox" / "transcription").items())]


def cards() -> list[Recording]:
    """Five short utterances, 1 to 3.5 s each."""
    return [Recording(f"card {name}", read_pcm(DATA / "cards" / f"{name}.wav"), text)
            for name, text in sorted(_transcriptions(DATA / "cards" / "cards.transcription").items())]


_SPELLINGS = {"mr": "mister", "10": "ten", "4": "four", "7": "seven", "5": "five", "8": "eight", "55": "five five"}
"""Whisper writes some words in another way than the transcription; they are read the same."""


def without_pauses(pcm: bytes) -> bytes:
    """Leave out the quiet parts of a recording (16-bit PCM)."""
    sound = np.frombuffer(pcm, "<i2")
    frames = sound[:len(sound) // 320 * 320].reshape(-1, 320)
    loud = np.abs(frames.astype(np.int32)).max(axis=1)
    return bytes(frames[loud > 0.08 * loud.max()])


def words(text: str) -> list[str]:
    """Split a text into words as they are read."""
    plain = re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("-", " "))
    return " ".join(_SPELLINGS.get(word, word) for word in plain.split()).split()


def errors(reference: str, heard: str) -> tuple[int, int]:
    """Return the word errors (Levenshtein distance) and the words of the reference."""
    want, got = words(reference), words(heard)
    return _distance(want, got), len(want)


def _distance(want: Sequence[str], got: Sequence[str]) -> int:
    row = list(range(len(got) + 1))
    for i, word in enumerate(want, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def word_error_rate(pairs: list[tuple[str, str]]) -> float:
    """Return the word error rate over pairs of reference and transcript."""
    counted = [errors(reference, heard) for reference, heard in pairs]
    return sum(wrong for wrong, _ in counted) / sum(total for _, total in counted)


def letter_error_rate(reference: str, heard: str) -> float:
    """Return the errors per letter, spaces left out: of a short sentence the words say little.

    "The cloud says carrots" and "the clouds as carrots" sound the same, and have two of four words in common.
    """
    want, got = "".join(words(reference)), "".join(words(heard))
    return _distance(want, got) / len(want)


def _pcm(samples: np.ndarray) -> bytes:
    return bytes(np.clip(samples * 32767, -32768, 32767).astype("<i2").tobytes())


def not_speech(seed: int = 7) -> dict[str, bytes]:
    """Sounds that must not become a question, 3 s each: silence, hum, noise, applause, a bark, a phone, clicks."""
    random = np.random.default_rng(seed)
    t = np.arange(3 * RATE) / RATE
    applause = np.zeros_like(t)
    for start in random.integers(0, len(t) - 800, 400):
        clap = random.normal(0, 1, 800) * np.exp(-np.arange(800) / 90)
        applause[start:start + 800] += clap * random.uniform(0.02, 0.1)
    bark = np.zeros_like(t)
    for start in (4000, 12000, 26000, 34000):
        n = np.arange(3600)
        pitch = 480 - 0.05 * n
        tone = sum(np.sin(2 * np.pi * pitch * k * n / RATE) / k for k in (1, 2, 3, 4))
        bark[start:start + 3600] += 0.3 * (tone + random.normal(0, 0.7, 3600)) * np.sin(np.pi * n / 3600) ** 0.5
    clicks = np.zeros_like(t)
    clicks[random.integers(0, len(t), 30)] = random.uniform(0.3, 0.9, 30)
    return {
        "silence": bytes(2 * len(t)),
        "room": _pcm(random.normal(0, 0.002, len(t))),
        "mains hum": _pcm(0.1 * np.sin(2 * np.pi * 50 * t) + 0.05 * np.sin(2 * np.pi * 150 * t)),
        "white noise": _pcm(random.normal(0, 0.1, len(t))),
        "applause": _pcm(applause),
        "dog": _pcm(bark),
        "telephone": _pcm(0.3 * np.sin(2 * np.pi * 440 * t) * (np.sin(2 * np.pi * 10 * t) > 0)),
        "clicks": _pcm(clicks),
    }
