"""Model files are recognised by their headers, and a cut one never passes."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotpind.errors import ModelFileError
from hotpind.models.catalogue import Role
from hotpind.models.convert_whisper import WeightFormat, convert_whisper
from hotpind.models.formats import BLOCKS, check_model_file, check_voice_config
from tests.models.samples import a_ctranslate2, a_gguf, a_voice_config, an_onnx


def a_ggml(directory: Path, weight_format: WeightFormat = "f16") -> bytes:
    weights, vocabulary, _ = a_ctranslate2()
    (directory / "model.bin").write_bytes(weights)
    (directory / "vocabulary.txt").write_bytes(vocabulary)
    out = io.BytesIO()
    convert_whisper(directory / "model.bin", directory / "vocabulary.txt", out, weight_format)
    return out.getvalue()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, bytes]:
    directory = tmp_path_factory.mktemp("samples")
    return {Role.STT: a_ggml(directory), Role.TTS: an_onnx(), Role.LLM: a_gguf(directory / "a.gguf"),
            Role.VISION_PROJECTOR: a_gguf(directory / "b.gguf", architecture="clip")}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("file") / "model"


@pytest.mark.parametrize("role", list(Role))
def test_a_whole_file_passes_for_its_role_only(samples: dict[Role, bytes], file: Path, role: Role) -> None:
    file.write_bytes(samples[role])
    check_model_file(file, role)
    for other in set(Role) - {role}:
        with pytest.raises(ModelFileError, match=r" is not (a|an) "):
            check_model_file(file, other)


def test_a_quantised_whisper_passes(tmp_path: Path) -> None:
    path = tmp_path / "q8"
    path.write_bytes(a_ggml(tmp_path, "q8_0"))
    check_model_file(path, Role.STT)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_cut_file_is_refused_wherever_it_was_cut(samples: dict[Role, bytes], file: Path, data: st.DataObject) -> None:
    role = data.draw(st.sampled_from(list(Role)))
    whole = samples[role]
    length = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:length])
    with pytest.raises(ModelFileError) as caught:
        check_model_file(file, role)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_never_brings_anything_but_a_sentence(samples: dict[Role, bytes], file: Path,
                                                               data: st.DataObject) -> None:
    role = data.draw(st.sampled_from(list(Role)))
    content = bytearray(samples[role])
    at = data.draw(st.integers(0, min(len(content), 4000) - 8))
    content[at:at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    file.write_bytes(content)
    # Damage that changes nothing of importance may pass; whatever does not is a ModelFileError.
    with suppress(ModelFileError):
        check_model_file(file, role)


def test_a_file_that_is_something_else_is_told_by_its_beginning(file: Path) -> None:
    file.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ModelFileError, match=r"is not a language model in GGUF format .*begins with b'<!DO'"):
        check_model_file(file, Role.LLM)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no file"):
        check_model_file(tmp_path / "none.gguf", Role.LLM)


def test_a_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        check_model_file(tmp_path, Role.LLM)


def test_the_sizes_of_blocks_are_those_of_ggmls_own_library() -> None:
    theirs = {kind.value: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: theirs[kind] for kind in BLOCKS} == BLOCKS


def test_the_configuration_of_a_voice(tmp_path: Path) -> None:
    path = tmp_path / "v.onnx.json"
    with pytest.raises(ModelFileError, match="there is no file"):
        check_voice_config(path)
    path.write_bytes(a_voice_config())
    check_voice_config(path)
    path.write_bytes(a_voice_config()[:-5])
    with pytest.raises(ModelFileError, match="is not JSON"):
        check_voice_config(path)
    path.write_bytes(b'{"audio": {}}')
    with pytest.raises(ModelFileError, match=r"audio\.sample_rate or phoneme_id_map is missing"):
        check_voice_config(path)
