"""Says, at start, which model of the catalogue would serve this machine better than the configured one."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hotpind.models.catalogue import ModelEntry, Role

APPLIANCE_MB = 460
"""Memory that is not the models': the appliance itself (60) and the rest of the system (400)."""
SHARE_FOR_MODELS = 0.75
"""Part of what is left that the models may take, so that the file cache keeps their weights in memory."""

_BOARD_SPEED = {"Raspberry Pi 5": 1.0, "Raspberry Pi 4": 0.47, "Raspberry Pi 400": 0.47,
                "Compute Module 4": 0.47, "Raspberry Pi 3": 0.25, "Raspberry Pi Zero 2": 0.2}
"""Speed of a core with the language models of the catalogue, a Raspberry Pi 5's being 1 (7.5 tokens a second
against 3.5 with Qwen 2.5 1.5B on a Pi 4)."""
_ARCHITECTURE_SPEED = {"x86_64": 1.5}
_SETTING = {Role.STT: "stt.model", Role.LLM: "chat.local.model"}
_KIND = {Role.STT: "speech recognition", Role.LLM: "local language model"}


@dataclass(frozen=True, slots=True)
class Machine:
    """What matters of a computer for the choice of models."""

    memory_bytes: int
    cores: int
    board: str = ""
    """Name of a single-board computer from the device tree; empty elsewhere."""
    architecture: str = ""
    """As `uname -m` writes it."""

    @classmethod
    def this(cls) -> Machine:
        """Describe the computer that this runs on. Reads two small files."""
        board = ""
        with suppress(OSError):
            board = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        return cls(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), len(os.sched_getaffinity(0)), board,
                   platform.machine())

    @property
    def speed(self) -> float:
        """All cores together, in cores of a Raspberry Pi 5."""
        for name, speed in _BOARD_SPEED.items():
            if name in self.board:
                return self.cores * speed
        return self.cores * _ARCHITECTURE_SPEED.get(self.architecture, 1.0)


def better_model_hint(catalogue: Mapping[str, ModelEntry], machine: Machine, *, stt: str | None, llm: str | None,
                      tts: str | None = None, language: str = "en", stt_quantised: bool = True) -> str | None:
    """Suggest in one sentence better models that fit ``machine``; None when the configured ones are right.

    ``stt``, ``llm`` and ``tts`` are the names that the settings give to the built-in engines; None, or
    something that is not in the catalogue (a file, a server elsewhere), is left as it is. ``language`` is an
    ISO 639-1 code; ``stt_quantised`` says that the speech engine reads quantised models, which
    whisper-cpp-python 0.2.0 does not.
    """
    configured = {role: catalogue[name] for role, name in ((Role.STT, stt), (Role.LLM, llm), (Role.TTS, tts))
                  if name is not None and name in catalogue}
    spare = (machine.memory_bytes / 1e6 - APPLIANCE_MB) * SHARE_FOR_MODELS
    in_use = sum(_memory(catalogue, entry) for entry in configured.values())
    if in_use > machine.memory_bytes / 1e6 - APPLIANCE_MB:
        return _too_much(catalogue, machine, configured, in_use)
    better = []
    for role in (Role.LLM, Role.STT):
        now = configured.get(role)
        if now is None or now.rank == 0:
            continue
        room = spare - in_use + _memory(catalogue, now)
        best = max((entry for entry in catalogue.values()
                    if entry.role is role and entry.memory_mb <= room and entry.cores <= machine.speed
                    and (role is not Role.STT or stt_quantised or not entry.quantised)
                    and _speaks(entry, now, language)), key=lambda entry: entry.rank, default=now)
        if best.rank > now.rank:
            better.append(best)
            in_use += best.memory_mb - _memory(catalogue, now)
    if not better:
        return None
    what = " and ".join(f"{entry.name} for {_KIND[entry.role]} (about {entry.memory_mb} MB)" for entry in better)
    settings = " and ".join(f"{_SETTING[entry.role]} = \"{entry.name}\"" for entry in better)
    return (f"{_describe(machine)} has room for better models: {what}; run `hotpinctl models pull "
            f"{' '.join(entry.name for entry in better)}` and set {settings}")


def has_room(catalogue: Mapping[str, ModelEntry], model: str, mmproj: str, available_bytes: int) -> bool:
    """Tell whether ``model``, with its vision projector, takes at most half of the memory that is available.

    A model is the name of an entry or the path of a file; reads the size of a file. What cannot be read has no room.
    """
    try:
        needed = sum(_memory(catalogue, catalogue[name]) * 1e6 if name in catalogue else Path(name).stat().st_size
                     for name in (model, mmproj) if name)
    except OSError:
        return False
    return needed <= available_bytes / 2


def _too_much(catalogue: Mapping[str, ModelEntry], machine: Machine, configured: Mapping[Role, ModelEntry],
              in_use: int) -> str | None:
    largest = max(configured.values(), key=lambda entry: _memory(catalogue, entry))
    default = next((entry for entry in catalogue.values() if entry.role is largest.role and entry.default), None)
    if default is None or default.memory_mb >= largest.memory_mb:
        return None
    return (f"{_describe(machine)} is small for the configured models, which take about {in_use} MB beside "
            f"{APPLIANCE_MB} MB for the rest: {default.name} in place of {largest.name} would save "
            f"{_memory(catalogue, largest) - default.memory_mb} MB")


def _memory(catalogue: Mapping[str, ModelEntry], entry: ModelEntry) -> int:
    return entry.memory_mb + (catalogue[entry.projector].memory_mb if entry.projector else 0)


def _speaks(entry: ModelEntry, now: ModelEntry, language: str) -> bool:
    """Tell whether ``entry`` may stand in for ``now``, which may have been chosen for its languages."""
    if not entry.languages:
        return True
    return bool(now.languages) and language in entry.languages


def _describe(machine: Machine) -> str:
    memory = f"{machine.memory_bytes / 2**30:.0f} GB of memory and {machine.cores} cores"
    return f"this {machine.board} ({memory})" if machine.board else f"this machine ({memory})"
