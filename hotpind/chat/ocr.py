"""Reading the text in a picture, for models without eyes.

The extra ``ocr`` (rapidocr-onnxruntime) brings models and library. It runs in a child process that is started
on first need and ended after a while without use: it takes 150 MB and a second or more to load, and native
code that parses pictures must not be able to take the appliance down.

Between the processes: a 4-byte big-endian length and so many bytes, a JPEG one way, UTF-8 text the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import struct
import sys
from collections.abc import Sequence

from hotpind.chat.messages import Picture
from hotpind.chat.readiness import KEPT_S, Ahead

_LOG = logging.getLogger(__name__)

MODULE = "rapidocr_onnxruntime"
ANSWER_DEADLINE_S = 3.0
"""How long a question waits for the text of its picture."""
WORK_DEADLINE_S = 30.0
"""How long one picture may take, loading included, before the child is taken for stuck; a Pi loads for
several seconds, after which the next question is served in time."""
IDLE_S = 600.0
"""Time without use after which the child is ended."""
WAITING = 3
"""Pictures that may wait; further ones are not read."""
LARGEST_ANSWER = 65536


class PictureReader:
    """Reads text in pictures."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "hotpind.chat.ocr_worker"),
                 *, idle_s: float = IDLE_S, work_deadline_s: float = WORK_DEADLINE_S,
                 keep_s: float = KEPT_S) -> None:
        self._command = command
        self._idle_s = idle_s
        self._work_deadline_s = work_deadline_s
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._jobs: Ahead[str | None] = Ahead(self._work, name="picture-reader", most=WAITING, keep_s=keep_s)
        self._idle: asyncio.TimerHandle | None = None

    @staticmethod
    def available() -> bool:
        """Whether the extra is installed."""
        return importlib.util.find_spec(MODULE) is not None

    async def read(self, pictures: Sequence[Picture], *, deadline_s: float = ANSWER_DEADLINE_S) -> list[str]:
        """Return the text found in the pictures, nothing for those that could not be read in time; never
        raises. What was begun by `expect` is not begun again.
        """
        jobs = [job for picture in pictures if (job := self._job(picture)) is not None]
        if not jobs:
            return []
        # What is not ready goes on in the background: it is mostly the loading, which the next question needs.
        done, _ = await asyncio.wait(jobs, timeout=deadline_s)
        return [text for job in jobs if job in done and not job.cancelled() and (text := job.result())]

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Begin to read the pictures of a question that is being asked; returns at once."""
        for picture in pictures:
            # One place is left to a question that is complete.
            if self._jobs.expected(picture) or self._jobs.running < WAITING - 1:
                self._jobs.begin(picture)

    async def close(self) -> None:
        """End the child and everything that waits for it."""
        await self._jobs.close()
        await self._end_child()

    def _job(self, picture: Picture) -> asyncio.Task[str | None] | None:
        job = self._jobs.begin(picture)
        if job is not None and job.done() and job.result() is None:
            # The reader failed before the question was complete; the question has its own try.
            self._jobs.forget(picture)
            job = self._jobs.begin(picture)
        return job

    async def _work(self, picture: Picture) -> str | None:
        async with self._turn:
            if self._idle:
                self._idle.cancel()
            try:
                async with asyncio.timeout(self._work_deadline_s):
                    text = await self._exchange(picture.jpeg)
            except (TimeoutError, OSError, EOFError, ValueError) as error:
                _LOG.warning("the text in a picture could not be read: the reader %s",
                             "took too long" if isinstance(error, TimeoutError) else "ended")
                await self._end_child()
                return None
            except asyncio.CancelledError:
                await self._end_child()
                raise
            self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._retire)
            return text

    async def _exchange(self, jpeg: bytes) -> str:
        child = self._child
        if child is None or child.returncode is not None:
            child = self._child = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL)
        if child.stdin is None or child.stdout is None:
            raise ValueError("the reader has no pipes")
        child.stdin.write(struct.pack("!I", len(jpeg)) + jpeg)
        await child.stdin.drain()
        (size,) = struct.unpack("!I", await child.stdout.readexactly(4))
        if size > LARGEST_ANSWER:
            raise ValueError("the reader answers out of protocol")
        return (await child.stdout.readexactly(size)).decode("utf-8", "replace")

    def _retire(self) -> None:
        """End the child when it is idle: it leaves by itself once its input is closed."""
        child, self._child = self._child, None
        if child is not None and child.stdin is not None:
            child.stdin.close()

    async def _end_child(self) -> None:
        if self._idle:
            self._idle.cancel()
        child, self._child = self._child, None
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        if child.stdin is not None:
            child.stdin.close()
