"""Reading text in pictures: a child process that may be slow, hang, die or talk nonsense; and the real one."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from hotpind.chat import ocr_worker
from hotpind.chat.messages import Picture
from hotpind.chat.ocr import WAITING, PictureReader
from hotpind.chat.readiness import KEPT
from tests.side_venv import side_venv
from tests.waiting import until

ECHO = """
import struct, sys, time
def read(): return sys.stdin.buffer.read(struct.unpack("!I", sys.stdin.buffer.read(4))[0])
def say(text): sys.stdout.buffer.write(struct.pack("!I", len(text)) + text); sys.stdout.flush()
"""


def picture(data: bytes = b"jpeg") -> Picture:
    return Picture(data, 4, 3)


@asynccontextmanager
async def reader(script: str, **options: Any) -> AsyncIterator[PictureReader]:
    made = PictureReader((sys.executable, "-c", ECHO + script), **options)
    try:
        yield made
    finally:
        await made.close()


async def gone(pid: int) -> None:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the child is still there")


async def test_one_child_reads_one_picture_after_the_other() -> None:
    async with reader("while True: say(read().upper())") as ocr:
        assert await ocr.read([picture(b"one"), picture(b"two")]) == ["ONE", "TWO"]
        child = ocr._child
        assert await ocr.read([picture(b"three")]) == ["THREE"]
        assert await ocr.read([picture(b"")]) == [], "no text is nothing"
        assert await ocr.read([]) == []
        assert ocr._child is child


def starts_slowly(starts: Path) -> str:
    """A child that leaves a letter in a file at its start, takes a while to load, and then reads well."""
    return f"open({str(starts)!r}, 'a').write('x')\ntime.sleep(0.2)\nwhile True: say(read())"


async def test_a_slow_start_does_not_hold_the_answer_up_and_is_not_lost(tmp_path: Path) -> None:
    async with reader(starts_slowly(tmp_path / "starts")) as ocr:
        assert await ocr.read([picture()], deadline_s=0.07) == [], "it would have been read a moment later"
        assert await ocr.read([picture(b"now")], deadline_s=10) == ["now"]
    assert (tmp_path / "starts").read_text() == "x"


def counts(readings: Path, *, takes_s: float = 0.2) -> str:
    """A child that leaves a letter in a file for each picture it begins to read."""
    return (f"while True:\n data = read(); print(end='x', file=open({str(readings)!r}, 'a'))\n"
            f" time.sleep({takes_s}); say(data)")


@pytest.mark.parametrize("done", [False, True], ids=["under way", "done"])
async def test_what_was_read_ahead_is_not_read_again(tmp_path: Path, done: bool) -> None:
    readings = tmp_path / "readings"
    async with reader(counts(readings)) as ocr:
        for _ in range(3):
            ocr.expect([picture(b"sign")])
        await until(readings.exists)
        if done:
            await until(lambda: not ocr._jobs.running)
        assert await ocr.read([picture(b"sign")], deadline_s=0.05 if done else 10) == ["sign"]
        assert readings.read_text() == "x"
        assert await ocr.read([picture(b"another")], deadline_s=10) == ["another"]
    assert readings.read_text() == "xx"


async def test_a_reading_under_way_keeps_the_question_s_deadline(tmp_path: Path) -> None:
    async with reader(counts(tmp_path / "readings", takes_s=30)) as ocr:
        ocr.expect([picture()])
        await until((tmp_path / "readings").exists)
        begun = time.monotonic()
        assert await ocr.read([picture()], deadline_s=0.1) == []
        assert time.monotonic() - begun < 20


async def test_a_picture_nobody_asked_about_is_soon_forgotten(tmp_path: Path) -> None:
    readings = tmp_path / "readings"
    async with reader(counts(readings, takes_s=0), keep_s=0.3) as ocr:
        ocr.expect([picture()])
        assert ocr._jobs.expected(picture())
        await until(lambda: not ocr._jobs.expected(picture()))
        await until(lambda: readings.exists() and not ocr._jobs.running)
        assert await ocr.read([picture()], deadline_s=10) == ["jpeg"]
    assert readings.read_text() == "xx"


async def test_only_a_few_pictures_are_remembered(tmp_path: Path) -> None:
    async with reader("while True: say(read())") as ocr:
        shots = [picture(b"%d" % index) for index in range(KEPT + 2)]
        for shot in shots:
            ocr.expect([shot])
            await until(lambda: not ocr._jobs.running)
        assert [ocr._jobs.expected(shot) for shot in shots] == [False] * 2 + [True] * KEPT


async def test_reading_ahead_leaves_a_place_for_a_question() -> None:
    async with reader("while True: time.sleep(0.02); say(read())") as ocr:
        ocr.expect([picture(b"%d" % index) for index in range(10)])
        assert await ocr.read([picture(b"asked")], deadline_s=10) == ["asked"]


async def test_a_reading_ahead_that_failed_leaves_the_question_its_own_try(tmp_path: Path) -> None:
    failed = tmp_path / "failed"
    script = f"import pathlib; failed = pathlib.Path({str(failed)!r}); again = failed.exists(); failed.touch()\n"
    async with reader(f"{script}read() if again else sys.exit(3)\nsay(b'sign')\nread()") as ocr:
        ocr.expect([picture()])
        await until(lambda: failed.exists() and not ocr._jobs.running)
        assert await ocr.read([picture()], deadline_s=10) == ["sign"]


async def test_closing_ends_what_is_read_ahead(tmp_path: Path, nothing_left: Callable[[], Awaitable[None]]) -> None:
    await nothing_left()
    async with reader(counts(tmp_path / "readings", takes_s=60)) as ocr:
        ocr.expect([picture(b"one"), picture(b"two")])
        await until((tmp_path / "readings").exists)
        async with asyncio.timeout(20):
            await ocr.close()
    assert not ocr._jobs.running
    ocr.expect([picture()])
    assert not ocr._jobs.expected(picture())
    await nothing_left()


@pytest.mark.parametrize("script", [
    "read(); time.sleep(60)", "read(); sys.exit(3)", "import os; read(); os.abort()", "say(b'x' * 100_000)",
    "sys.stdout.buffer.write(b'\\xff' * 50); sys.stdout.flush(); time.sleep(60)", "sys.exit(0)",
    "read(); say(b'half'); sys.stdout.buffer.write(b'\\0\\0\\0\\9ha'); sys.stdout.flush()\nread(); sys.exit()"])
async def test_a_child_that_fails_costs_one_picture(script: str) -> None:
    async with reader(script, work_deadline_s=0.2) as ocr:
        first = await ocr.read([picture()], deadline_s=2)
        assert first in ([], ["half"])
        before = ocr._child
        await ocr.read([picture(b"another")], deadline_s=2)
        assert ocr._child is None or ocr._child is not before


async def test_a_program_that_is_not_there_is_survived() -> None:
    ocr = PictureReader(("/nonexistent/python",))
    assert await ocr.read([picture()]) == []
    await ocr.close()


async def test_too_many_pictures_are_not_read() -> None:
    async with reader("while True: time.sleep(0.02); say(read())") as ocr:
        texts = await asyncio.gather(*(ocr.read([picture(b"%d" % index)], deadline_s=5) for index in range(10)))
        assert sum(bool(text) for text in texts) == WAITING


async def test_an_idle_child_leaves_and_comes_back() -> None:
    async with reader("while True: say(read())", idle_s=0.1) as ocr:
        assert await ocr.read([picture(b"one")]) == ["one"]
        assert ocr._child is not None
        await gone(ocr._child.pid)
        assert await ocr.read([picture(b"two")]) == ["two"]


async def test_nothing_is_left_when_it_is_closed(nothing_left: Callable[[], Awaitable[None]]) -> None:
    await nothing_left()
    async with reader("read(); time.sleep(60)") as ocr:
        await ocr.read([picture()], deadline_s=0.3)
        assert ocr._child is not None
        pid = ocr._child.pid
    await gone(pid)
    assert await ocr.read([picture()]) == []
    await nothing_left()


async def test_a_cancelled_question_does_not_end_the_loading(tmp_path: Path) -> None:
    async with reader(starts_slowly(tmp_path / "starts")) as ocr:
        task = asyncio.ensure_future(ocr.read([picture()]))
        await until((tmp_path / "starts").exists)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await ocr.read([picture(b"now")], deadline_s=10) == ["now"]
    assert (tmp_path / "starts").read_text() == "x"


def sign(text: str) -> Picture:
    image = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(image).text((60, 180), text, fill="black", font=ImageFont.load_default(48))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Picture(buffer.getvalue(), 640, 480)


@pytest.mark.slow
async def test_the_real_one_reads_a_sign() -> None:
    python = (Path(sys.executable) if PictureReader.available() else
              side_venv("ocr", "rapidocr-onnxruntime>=1.4.4,<2"))
    ocr = PictureReader((str(python), os.fspath(Path(ocr_worker.__file__))))
    try:
        assert await ocr.read([sign("Milk 2 liters")], deadline_s=60) == ["Milk 2 liters"]
        begun = time.monotonic()
        assert await ocr.read([sign("STOP")]) == ["STOP"]
        print(f"a second picture takes {time.monotonic() - begun:.2f} s")
        assert await ocr.read([picture(b"this is no picture"), sign("again")], deadline_s=10) == ["again"]
    finally:
        await ocr.close()
