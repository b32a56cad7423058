"""The catalogue: what is in it, and how mistakes in a user's own are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpind.config.schema import Config
from hotpind.errors import ModelFileError
from hotpind.models.catalogue import Catalogue, HubSource, PypiSource, Role
from tests.models.samples import hub_model


def test_the_settings_defaults_are_the_default_set() -> None:
    settings = Config()
    catalogue = Catalogue.load()
    named = {settings.stt.model: Role.STT, settings.tts.voice: Role.TTS, settings.chat.local.model: Role.LLM}
    assert {name: catalogue[name].role for name in named} == named
    assert set(catalogue.defaults()) == set(named)


def test_the_default_set_is_pinned_to_the_byte() -> None:
    catalogue = Catalogue.load()
    for name in catalogue.defaults():
        assert isinstance(catalogue[name].source, PypiSource)
        assert all(file.sha256 and file.size for file in catalogue[name].files), name


def test_what_the_issue_asks_for_is_there() -> None:
    catalogue = Catalogue.load()
    from_hub = {(entry.source.repository, file.source_path) for entry in catalogue.values()
                if isinstance(entry.source, HubSource) for file in entry.files}
    whisper = "ggerganov/whisper.cpp"
    assert {(whisper, f"ggml-{size}.bin") for size in (
        "base.en", "base.en-q5_1", "small.en", "small.en-q5_1", "base", "large-v3-turbo-q5_0")} <= from_hub
    for size in ("0.5", "1.5"):
        assert (f"Qwen/Qwen2.5-{size}B-Instruct-GGUF", f"qwen2.5-{size}b-instruct-q4_k_m.gguf") in from_hub
    assert ("HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "smollm2-1.7b-instruct-q4_k_m.gguf") in from_hub
    for size in ("256M", "500M"):
        eyes = catalogue[f"smolvlm-{size.lower()}-instruct"].projector
        assert eyes is not None
        assert catalogue[eyes].files[0].name == f"mmproj-SmolVLM-{size}-Instruct-Q8_0.gguf"


def test_every_entry_can_be_shown_and_weighed() -> None:
    for entry in Catalogue.load().values():
        assert entry.expected_bytes > 0, entry.name
        assert entry.licence, entry.name
        assert entry.role is Role.VISION_PROJECTOR or entry.suits, entry.name


def test_a_name_that_was_mistyped_gets_a_suggestion() -> None:
    with pytest.raises(ModelFileError, match=r"no model named 'whisper-tiny-en'; did you mean whisper-tiny\.en\?"):
        Catalogue.load().entry("whisper-tiny-en")


def test_a_users_entry_is_added(tmp_path: Path) -> None:
    (tmp_path / "catalogue.toml").write_text(hub_model("mine", "me/mine", "mine.gguf"))
    assert Catalogue.load(tmp_path)["mine"].files[0].name == "mine.gguf"


@pytest.mark.parametrize(("entry", "told"), [
    ("[[model]", "is not valid TOML"),
    ("[[model]]\nname = 1", "model 1, name"),
    (hub_model("m", "me/m", "../m.gguf"), "model m, files.0.name"),
    (hub_model("../../etc", "me/m", "m.gguf"), "model ../../etc, name"),
    (hub_model("m", "me/m", "m.gguf", extra=', path = "/etc/passwd"'), "model m, files.0.path"),
    (hub_model("m", "m", "m.gguf"), "model m, source.huggingface.repository"),
    (hub_model("m", "me/m", "m.gguf", role="ear"), "model m, role"),
    (hub_model("m", "me/m", "m.gguf", extra=', sha256 = "abc"'), "model m, files.0.sha256"),
    (hub_model("m", "me/m", "m.gguf", more="colour = 1"), "model m, colour"),
    (hub_model("m", "me/m", "m.bin"), "model m: a model of role llm has exactly one file, a .gguf"),
    (hub_model("m", "me/m", "m.onnx", role="tts"), "a voice has exactly two files"),
    (hub_model("m", "me/m", "m.gguf", more='projector = "x"'), "vision projector x, but there is no such entry"),
    (hub_model("whisper-tiny.en", "me/m", "m.gguf"), "two entries named whisper-tiny.en"),
])
def test_a_mistake_is_one_sentence_with_its_place(tmp_path: Path, entry: str, told: str) -> None:
    (tmp_path / "catalogue.toml").write_text(entry)
    with pytest.raises(ModelFileError) as caught:
        Catalogue.load(tmp_path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
