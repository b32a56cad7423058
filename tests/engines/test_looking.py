"""A picture is encoded while its question is still being asked, and once: with llama.cpp and random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hotpind.engines.llama import OPENING

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "tests.engines.looking", str(tmp_path_factory.mktemp("vision"))],
                          cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_was_looked_at_is_not_encoded_again(seen: dict[str, Any]) -> None:
    steps = seen["steps"]
    tiles = steps["first"]
    assert tiles > 0
    assert steps["look at the second"] == steps["second, never seen"] == tiles
    for step in ("look at the first again", "second", "first again", "both", "both turned round"):
        assert steps[step] == 0, step
    assert steps["both, never seen"] == tiles, "only the first of them was new"


def test_it_makes_no_difference_to_the_answer(seen: dict[str, Any]) -> None:
    said = seen["said"]
    assert said["first"] == said["first again"] != said["second"]
    assert said["second"] == said["second, never seen"]
    assert said["both"] == said["both, never seen"] != said["both turned round"]


def test_the_memory_of_pictures_is_bounded(seen: dict[str, Any]) -> None:
    assert seen["kept"] == seen["most"]
    assert seen["steps"]["the newest of many"] == 0
    assert seen["steps"]["the oldest of many"] > 0


def test_warming_looks_at_a_conversation_s_pictures_and_stumbles_over_none(seen: dict[str, Any]) -> None:
    first, *rest = seen["warm"]
    assert first > 0
    assert rest == [0] * 5


def test_all_cores_work_on_the_first_clause_and_one_is_left_to_the_voice_then(seen: dict[str, Any]) -> None:
    for threads in seen["threads"]:
        assert set(threads[:OPENING // 2]) == {2}
        assert threads[-1] == 1
        assert threads == sorted(threads, reverse=True)
