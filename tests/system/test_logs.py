"""What reaches standard error, from real processes; the journal's side is tested in the booted container."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from hotpind.system.logs import fields, on_journal

PRELUDE = """
import logging, os, sys
from hotpind.system.logs import Log, fields
log = logging.getLogger("hotpind.conversation")
"""


def run(code: str, *, environ: dict[str, str] | None = None, stderr: int = subprocess.PIPE) -> str:
    done = subprocess.run([sys.executable, "-c", PRELUDE + textwrap.dedent(code)], stderr=stderr, text=True,
                          timeout=60, env={**os.environ, **(environ or {})}, check=True)
    return done.stderr or ""


def test_a_readable_line_with_what_it_is_about() -> None:
    text = run("""
        Log("info")
        log.info("answered in %d ms", 420, extra=fields(turn="4f2a", device="kitchen", stt_ms=100))
        log.debug("not this")
    """)
    line = text.strip()
    assert line.endswith("info conversation: answered in 420 ms [turn 4f2a, device kitchen]")
    assert "\n" not in line
    assert "\033" not in line


def test_the_level_changes_while_running_and_only_for_the_appliance() -> None:
    text = run("""
        settings = Log("warning")
        log.info("one")
        settings.set_level("debug")
        log.debug("two")
        logging.getLogger("groq._base_client").debug("the whole request")
        logging.getLogger("groq._base_client").info("the address")
        logging.getLogger("aiohttp").warning("three")
        settings.set_level("error")
        log.warning("four")
    """)
    assert [line.rsplit(" ", 1)[-1] for line in text.splitlines()] == ["two", "three"]


def test_a_traceback_is_kept() -> None:
    text = run("""
        Log("info")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("broke")
    """)
    assert "error conversation: broke" in text
    assert "ZeroDivisionError: division by zero" in text


def test_a_reader_that_is_stuck_does_not_stop_the_writer() -> None:
    reader, writer = os.pipe()
    try:
        begun = time.monotonic()
        run("""
            import time
            Log("info")
            for number in range(20000):
                log.info("message %d of many that fill the pipe", number)
                    """, stderr=writer)
        assert time.monotonic() - begun < 50
    finally:
        os.close(writer)
        os.close(reader)


def test_lost_messages_are_counted() -> None:
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", PRELUDE + textwrap.dedent("""
        settings = Log("info")
        for number in range(5000):
            log.info("message %d of many that fill the pipe and then the queue", number)
        print("written", flush=True)
        sys.stdin.readline()
        import time
        time.sleep(3)
        log.info("after")
        settings.close()
    """)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer, text=True) as process:
        os.close(writer)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.stdin.write("\n")
        process.stdin.flush()
        with os.fdopen(reader, encoding="utf-8") as pipe:
            lines = pipe.read().splitlines()
        assert process.wait(30) == 0
    lost = [line for line in lines if "messages were lost because the log took none" in line]
    assert lost
    assert sum(int(line.split(": ")[1].split()[0]) for line in lost) + len(lines) - len(lost) - 1 == 5000
    assert lines[-1].endswith("after")


def test_prefixed_lines_when_the_journal_reads_but_its_library_is_missing(tmp_path: Path) -> None:
    with tempfile.TemporaryFile("w+", dir=tmp_path) as file:
        stat = os.fstat(file.fileno())
        run("""
            sys.modules["systemd"] = None
            Log("info")
            log.warning("two\\nlines")
        """, environ={"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}, stderr=file.fileno())
        file.seek(0)
        assert file.read() == "<4>two\n<4>lines\n"


def test_journal_stream_must_be_this_one(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as file:
        stat = os.fstat(file.fileno())
        assert on_journal(file, {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"})
        assert not on_journal(file, {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino + 1}"})
        assert not on_journal(file, {})


def test_fields_leave_out_what_is_empty() -> None:
    assert fields(turn="4f", stage="stt", bytes_in=7) == {
        "HOTPIN_TURN": "4f", "HOTPIN_STAGE": "stt", "HOTPIN_BYTES_IN": "7"}


def test_fields_do_not_clash_with_the_record() -> None:
    extra = fields(turn="a", device="b", stage="c", message_ms=1)
    log = logging.getLogger("hotpind")
    record = log.makeRecord(log.name, logging.INFO, __file__, 1, "text", (), None, None, extra)
    assert record.__dict__["HOTPIN_TURN"] == "a"
