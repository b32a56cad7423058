"""What a status line says of work on models."""

from __future__ import annotations

from hotpind.models.progress import Activity, Progress, Stage


def test_each_job_is_named_with_its_part_and_forgotten_when_it_ends() -> None:
    activity = Activity()
    assert str(activity) == ""
    with activity.of("voice") as voice, activity.of("tiny.en") as tiny:
        assert str(activity) == ""
        voice(Progress("voice", Stage.DOWNLOADING, "voice.onnx", done=20, total=80))
        tiny(Progress("tiny.en", Stage.CONVERTING))
        assert str(activity) == "downloading voice (25 %), converting tiny.en"
        tiny(Progress("tiny.en", Stage.CHECKING, done=1, total=2))
        assert str(activity) == "downloading voice (25 %)"
    assert str(activity) == ""


def test_a_vision_projector_counts_as_its_model() -> None:
    activity = Activity()
    with activity.of("eyes") as report:
        report(Progress("eyes-mmproj", Stage.DOWNLOADING, done=1, total=1))
        assert str(activity) == "downloading eyes (100 %)"
