"""The language model's weights in the form that this processor likes best: the same model, made once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import gguf
import numpy as np
import pytest

from hotpind.config import Config
from hotpind.engines import weights
from hotpind.engines.fleet import PREPARED, llama_spec
from hotpind.engines.weights import QUICK_TYPE, WEIGHTS, quickest
from hotpind.models.catalogue import Role
from hotpind.models.formats import gguf_file_type
from hotpind.models.store import ModelStore
from tests.places import models_path

Q4_1 = 3
PC, BOARD = "x86_64", "aarch64"
NEXT_TOKENS = textwrap.dedent("""
    import sys
    import numpy as np
    from llama_cpp import Llama

    # What the model expects after each token of a text, by both files.
    text = b"The library is the large building at the end of the street. It opens at nine and closes at six, and on " \\
           b"Sundays it stays closed. You can borrow as many books as you like for four weeks."
    tops = []
    for path in sys.argv[1:]:
        llm = Llama(path, n_ctx=256, n_threads=2, verbose=False, logits_all=True)
        llm.eval(llm.tokenize(text))
        tops.append(np.argmax(llm.scores[:llm.n_tokens], axis=-1))
    print(np.mean(tops[0] == tops[1]))
""")


def smollm() -> Path:
    return ModelStore(models_path()).resolve(Config().chat.local.model, Role.LLM).main


def a_model(path: Path, file_type: int | None = Q4_1) -> Path:
    """Write a file that looks like a language model and is none."""
    writer = gguf.GGUFWriter(path, "llama")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_tensor("weights", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of the default model's weights."""
    directory = tmp_path_factory.mktemp("models") / PREPARED
    assert quickest(smollm(), directory, threads=2, machine=PC) == directory / WEIGHTS
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def converting(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Counts how often weights are made."""
    run = Mock(wraps=subprocess.run)
    monkeypatch.setattr(subprocess, "run", run)
    return run


@pytest.mark.models
def test_the_default_model_gets_quicker_weights_that_say_the_same(made: Path) -> None:
    assert gguf_file_type(smollm()) == Q4_1
    assert gguf_file_type(made / WEIGHTS) == QUICK_TYPE
    ended = subprocess.run([sys.executable, "-c", NEXT_TOKENS, str(smollm()), str(made / WEIGHTS)], check=True,
                           capture_output=True, timeout=120)
    assert float(ended.stdout) > 0.9


@pytest.mark.models
def test_they_are_made_once_and_again_when_the_model_is_another_or_they_are_damaged(
        made: Path, tmp_path: Path, converting: Mock) -> None:
    model = tmp_path / "model.gguf"
    os.link(smollm(), model) if smollm().stat().st_dev == tmp_path.stat().st_dev else shutil.copy2(smollm(), model)
    kept = tmp_path / PREPARED
    shutil.copytree(made, kept)
    assert quickest(model, kept, threads=2, machine=PC) == kept / WEIGHTS
    assert not converting.called
    whole = (kept / WEIGHTS).read_bytes()
    (kept / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert quickest(model, kept, threads=2, machine=PC) == kept / WEIGHTS
    assert (kept / WEIGHTS).read_bytes() == whole
    facts = json.loads((kept / weights.FACTS).read_text())
    (kept / weights.FACTS).write_text(json.dumps({**facts, "recipe": "of another model"}))
    assert quickest(model, kept, threads=2, machine=PC) == kept / WEIGHTS
    assert converting.call_count == 2
    assert sorted(each.name for each in kept.iterdir()) == sorted([WEIGHTS, weights.FACTS])


@pytest.mark.parametrize("file_type", [None, QUICK_TYPE, 15])
def test_weights_that_are_quick_or_unknown_are_left_alone(
        tmp_path: Path, converting: Mock, file_type: int | None) -> None:
    model = a_model(tmp_path / "model.gguf", file_type)
    assert quickest(model, tmp_path / PREPARED, threads=1, machine=PC) == model
    assert not converting.called


def test_so_is_a_model_of_another_machine_one_too_large_and_somebodys_own(
        tmp_path: Path, converting: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(tmp_path / "model.gguf")
    assert quickest(model, tmp_path / PREPARED, threads=1, machine=BOARD) == model
    assert quickest(model, None, threads=1, machine=PC) == model
    monkeypatch.setattr(weights, "LARGEST_BYTES", 10)
    assert quickest(model, tmp_path / PREPARED, threads=1, machine=PC) == model
    assert not converting.called
    assert not (tmp_path / PREPARED).exists()


def test_what_cannot_be_made_costs_nothing_but_speed(
        tmp_path: Path, converting: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(tmp_path / "model.gguf")
    prepared = tmp_path / PREPARED
    assert quickest(model, prepared, threads=1, machine=PC) == model
    assert converting.call_count == 1
    assert not list(prepared.iterdir())
    monkeypatch.setattr(weights, "DEADLINE_S", 0.01)
    assert quickest(model, prepared, threads=1, machine=PC) == model
    monkeypatch.setattr(weights, "RESERVE_BYTES", 1 << 60)
    assert quickest(model, prepared, threads=1, machine=PC) == model
    (tmp_path / "file").write_text("")
    assert quickest(model, tmp_path / "file" / PREPARED, threads=1, machine=PC) == model
    assert converting.call_count == 2


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all, but long enough to hold a header"])
def test_a_file_that_is_no_model_is_left_to_who_loads_it(tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(content)
    assert quickest(model, tmp_path / PREPARED, threads=1, machine=PC) == model
    assert quickest(tmp_path / "missing.gguf", tmp_path / PREPARED, threads=1, machine=PC) == tmp_path / "missing.gguf"


@pytest.mark.models
def test_the_engine_keeps_them_with_a_model_of_ours_only(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    config = Config()
    assert "--prepared" in llama_spec(config, tmp_path, lambda: (smollm(), None)).arguments()
    assert "--prepared" not in llama_spec(config, tmp_path, lambda: (own, None)).arguments()
    config = Config.model_validate({"chat": {"local": {"gpu_layers": 8}}})
    assert "--prepared" not in llama_spec(config, tmp_path, lambda: (smollm(), None)).arguments()
