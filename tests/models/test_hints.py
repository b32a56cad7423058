"""Which better model is suggested, for the machines that people have."""

from __future__ import annotations

from pathlib import Path

import pytest

from hotpind.models.catalogue import Catalogue
from hotpind.models.hints import Machine, better_model_hint, has_room

CATALOGUE = Catalogue.load()
STT, LLM, TTS = "whisper-tiny.en", "smollm2-135m-instruct", "piper-en_US-joe-medium"
GB = 2**30


def pi(model: int, memory_gb: float) -> Machine:
    return Machine(int(memory_gb * GB), 4, f"Raspberry Pi {model} Model B Rev 1.0", "aarch64")


def hint(machine: Machine, *, stt: str | None = STT, llm: str | None = LLM, language: str = "en") -> str:
    return better_model_hint(CATALOGUE, machine, stt=stt, llm=llm, tts=TTS, language=language) or ""


@pytest.mark.parametrize(("machine", "suggested"), [
    (pi(5, 7.8), ["qwen2.5-1.5b-instruct", "whisper-base.en"]),
    (pi(5, 3.8), ["qwen2.5-1.5b-instruct", "whisper-base.en"]),
    (pi(5, 1.9), ["qwen2.5-0.5b-instruct", "whisper-base.en-q5_1"]),
    (pi(4, 7.6), ["qwen2.5-0.5b-instruct"]),
    (pi(4, 3.7), ["qwen2.5-0.5b-instruct"]),
    (pi(4, 1.8), ["qwen2.5-0.5b-instruct"]),
    (pi(4, 0.9), []),
    (pi(3, 0.9), []),
    (Machine(24 * GB, 2, "", "x86_64"), ["qwen2.5-1.5b-instruct", "whisper-base.en"]),
    (Machine(32 * GB, 16, "", "x86_64"), ["qwen2.5-1.5b-instruct", "whisper-small.en"]),
])
def test_a_machine_gets_what_fits_its_memory_and_speed(machine: Machine, suggested: list[str]) -> None:
    sentence = hint(machine)
    better = {entry.name for entry in CATALOGUE.values() if f"{entry.name} for" in sentence}
    assert better == set(suggested), sentence
    if suggested:
        assert f"`hotpinctl models pull {' '.join(suggested)}`" in sentence
        assert "\n" not in sentence


def test_a_well_chosen_set_is_left_in_peace() -> None:
    assert not hint(pi(5, 7.8), stt="whisper-base.en", llm="qwen2.5-1.5b-instruct")


def test_what_the_catalogue_does_not_know_is_left_in_peace() -> None:
    assert not hint(pi(5, 7.8), stt="/srv/whisper.bin", llm=None)


def test_a_model_with_eyes_is_not_traded_for_a_blind_one() -> None:
    assert "chat.local.model" not in hint(pi(5, 7.8), llm="smolvlm-500m-instruct")


def test_a_home_that_does_not_speak_english_keeps_its_languages() -> None:
    sentence = hint(Machine(32 * GB, 16, "", "x86_64"), stt="whisper-base", language="de")
    assert 'stt.model = "whisper-small-q5_1"' in sentence
    assert ".en" not in sentence


@pytest.mark.parametrize("quantised", [True, False])
def test_an_engine_that_cannot_read_quantised_models_is_not_offered_one(quantised: bool) -> None:
    sentence = better_model_hint(CATALOGUE, pi(5, 1.9), stt=STT, llm=LLM, tts=TTS, stt_quantised=quantised)
    assert ("whisper-base.en-q5_1" in (sentence or "")) == quantised


def test_models_that_are_too_large_are_told() -> None:
    sentence = hint(pi(4, 1.8), llm="qwen2.5-1.5b-instruct")
    assert "smollm2-135m-instruct in place of qwen2.5-1.5b-instruct would save 1398 MB" in sentence


def test_this_machine_is_described() -> None:
    machine = Machine.this()
    assert machine.cores >= 1
    assert machine.memory_bytes > 100_000_000
    assert machine.speed > 0


@pytest.mark.parametrize(("model", "mmproj", "available_mb", "room"), [
    ("smollm2-135m-instruct", "", 410, True),
    ("smollm2-135m-instruct", "", 400, False),
    ("qwen2.5-1.5b-instruct", "", 3400, True),
    ("qwen2.5-1.5b-instruct", "", 2900, False),
    ("smolvlm-500m-instruct", "", 2200, False),
    ("smolvlm-500m-instruct", "", 2400, True),
    ("no-such-entry", "", 10**6, False),
])
def test_a_model_has_room_when_as_much_again_stays_free(model: str, mmproj: str, available_mb: int, *,
                                                        room: bool) -> None:
    assert has_room(CATALOGUE, model, mmproj, available_mb * 10**6) == room


def test_a_file_counts_with_its_size(tmp_path: Path) -> None:
    model, mmproj = tmp_path / "model.gguf", tmp_path / "mmproj.gguf"
    model.write_bytes(bytes(3000))
    mmproj.write_bytes(bytes(1000))
    assert has_room(CATALOGUE, str(model), str(mmproj), 8000)
    assert not has_room(CATALOGUE, str(model), str(mmproj), 7999)
