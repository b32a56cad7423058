"""What loading made of a voice, kept beside its file: cut in two, optimised and tried.

To make it takes three times as long as to load it (1.4 and 0.4 s measured on two cores), and some ten seconds on a
small board, at each start.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotpind.models.files import RESERVE_BYTES, digests_of, place

_LOG = logging.getLogger(__name__)

FORMAT = 1
"""Of `FACTS`; a later one is made anew."""
FRAMES, SOUND, FACTS = "frames.onnx", "sound.onnx", "prepared.json"
Recipe = Mapping[str, str | int | float | None]
"""All that decides what comes out: whatever differs, the voice is prepared again."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What was found out about a voice in halves."""

    cut: str
    """See `hotpind.engines.onnx_cut.Halves`."""
    neighbours: int
    """Frames needed on both sides of a piece."""
    gain: float


class Shelf:
    """One directory with one prepared voice, or none. Blocks. A disk that fails costs time at the next start only."""

    def __init__(self, directory: Path | None, recipe: Recipe) -> None:
        """Keep the voice made by ``recipe`` in ``directory``; None: keep nothing."""
        self._directory = directory
        self._recipe = dict(recipe)
        self._tried: Tried | None = None

    @property
    def frames(self) -> Path | None:
        """Where the optimised first half is to be written, unless nothing is kept."""
        return self._part(FRAMES) if self._directory else None

    def find(self) -> tuple[Path, Path, Tried] | None:
        """Return the halves' files and what is known of them, if they are whole and this recipe's."""
        if self._directory is None:
            return None
        try:
            facts: Any = json.loads((self._directory / FACTS).read_bytes())
            if facts["format"] != FORMAT or facts["recipe"] != self._recipe:
                return None
            paths = [self._directory / name for name in (FRAMES, SOUND)]
            if [digests_of(path, ["sha256"])["sha256"] for path in paths] != facts["sha256"]:
                _LOG.warning("%s: the prepared voice was damaged; it is made again", self._directory)
                return None
            return paths[0], paths[1], Tried(**facts["tried"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def clear(self, size: int) -> None:
        """Make room for a voice of ``size`` bytes; nothing is kept when there is none, or it cannot be written to."""
        if self._directory is None:
            return
        try:
            # An old voice goes first: both might not fit.
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory.mkdir(parents=True)
            if shutil.disk_usage(self._directory).free < size + RESERVE_BYTES:
                self.give_up("the disk is almost full")
        except OSError as error:
            self.give_up(str(error))

    def put(self, sound: bytes, tried: Tried) -> None:
        """Take the second half and what is known; the first is at `frames` by now."""
        if self._directory is None:
            return
        try:
            self._part(SOUND).write_bytes(sound)
            self._tried = tried
        except OSError as error:
            self.give_up(str(error))

    def settle(self) -> None:
        """Bring to the disk what was put here, which takes seconds on an SD card."""
        if self._directory is None or self._tried is None:
            return
        try:
            parts = [(self._part(name), self._directory / name) for name in (FRAMES, SOUND)]
            facts = {"format": FORMAT, "recipe": self._recipe, "tried": asdict(self._tried),
                     "sha256": [digests_of(part, ["sha256"])["sha256"] for part, _ in parts]}
            self._part(FACTS).write_text(json.dumps(facts))
            for part, final in (*parts, (self._part(FACTS), self._directory / FACTS)):
                place(part, final)
        except OSError as error:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """Keep nothing after all."""
        if self._directory is None:
            return
        _LOG.debug("%s: the prepared voice is not kept: %s", self._directory, reason)
        with contextlib.suppress(OSError):
            for name in (FRAMES, SOUND, FACTS):
                self._part(name).unlink(missing_ok=True)
        self._directory = None

    def _part(self, name: str) -> Path:
        assert self._directory is not None
        return self._directory / f".{name}.{os.getpid()}"
