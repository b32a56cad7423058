"""A language model's weights as this processor multiplies them fastest, kept beside the model's file.

llama.cpp multiplies several tokens at a time by weights of type Q8_0 in blocks that stay in the processor's registers;
those of Q4_1 and Q5_1 it takes one by one. Eight bits hold what four or five did, so the model says the same. Measured
on two x86-64 cores with SmolLM2-135M: twelve tokens of a prompt 84 ms with Q4_1 and 50 with Q8_0, a token of the answer
11 with both. A larger model would lose there what it gains: an answer's tokens wait for memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from hotpind.engines.child import die_with_parent
from hotpind.errors import ModelFileError
from hotpind.models.catalogue import Role
from hotpind.models.files import RESERVE_BYTES, digests_of, place
from hotpind.models.formats import check_model_file, gguf_file_type

_LOG = logging.getLogger(__name__)

SLOW_TYPES = frozenset({3, 9})
"""Q4_1 and Q5_1, as ``general.file_type`` has them (llama.h, ``llama_ftype``)."""
QUICK_TYPE = 7
"""Q8_0."""
LARGEST_BYTES = 200_000_000
GROWTH = 1.8
"""How much larger the file becomes, at most: 34 bytes for 32 weights in place of 20 or 24."""
MACHINES = frozenset({"x86_64", "AMD64"})
"""Where it was measured to be faster."""
DEADLINE_S = 20.0
"""It takes two seconds; an engine that loads a model has 40."""
WEIGHTS, FACTS = "weights.gguf", "weights.json"


def quickest(model: Path, directory: Path | None, *, threads: int, machine: str | None = None) -> Path:
    """Return the file to load for ``model``: one in ``directory`` with quicker weights, made now if need be.

    Blocks for some seconds then. It is the model's own file when that is as quick on this ``machine``, when
    ``directory`` is None, and when anything goes wrong.
    """
    if directory is None or (machine or platform.machine()) not in MACHINES:
        return model
    try:
        found = model.stat()
        if found.st_size > LARGEST_BYTES or gguf_file_type(model) not in SLOW_TYPES:
            return model
        recipe = f"{found.st_size} {found.st_mtime_ns} {version('llama_cpp_python')}"
        if not _is_there(directory, recipe):
            _make(model, directory, recipe, threads)
    except (OSError, subprocess.SubprocessError, ModelFileError) as error:
        _LOG.debug("%s: there are no quicker weights: %s", model, error)
        return model
    return directory / WEIGHTS


def _is_there(directory: Path, recipe: str) -> bool:
    """Tell whether the weights made by ``recipe`` are there and whole."""
    try:
        facts = json.loads((directory / FACTS).read_bytes())
        if facts["recipe"] != recipe:
            return False
        if digests_of(directory / WEIGHTS, ["sha256"])["sha256"] == facts["sha256"]:
            return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    _LOG.warning("%s: the prepared weights were damaged; they are made again", directory)
    return False


def _make(model: Path, directory: Path, recipe: str, threads: int) -> None:
    # Older ones go first: both might not fit.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if shutil.disk_usage(directory).free < model.stat().st_size * GROWTH + RESERVE_BYTES:
        raise OSError("the disk is almost full")
    weights, facts = (directory / f".{name}.{os.getpid()}" for name in (WEIGHTS, FACTS))
    try:
        # A process of its own: llama.cpp ends the process at what it cannot take, and keeps memory otherwise.
        subprocess.run([sys.executable, "-m", "hotpind.engines.weights", str(model), str(weights),
                        "--threads", str(threads), "--parent", str(os.getpid())], check=True, timeout=DEADLINE_S,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        check_model_file(weights, Role.LLM)
        facts.write_text(json.dumps({"recipe": recipe, "sha256": digests_of(weights, ["sha256"])["sha256"]}))
        place(weights, directory / WEIGHTS)
        place(facts, directory / FACTS)
    finally:
        for part in (weights, facts):
            part.unlink(missing_ok=True)


def main() -> None:
    """Write a model with weights of `QUICK_TYPE`; the exit status is 0 when it is whole."""
    parser = argparse.ArgumentParser()
    for name in ("model", "to"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args()
    die_with_parent(args.parent)
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = QUICK_TYPE, args.threads, True
    sys.exit(llama_cpp.llama_model_quantize(bytes(args.model), bytes(args.to), ctypes.byref(settings)))


if __name__ == "__main__":
    main()
