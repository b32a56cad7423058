"""What a long model job tells whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """What is being done to a model's file."""

    WAITING = "waiting"
    """Another process works on the same model."""
    DOWNLOADING = "downloading"
    CHECKING = "checking"
    """The file is hashed."""
    UNPACKING = "unpacking"
    CONVERTING = "converting"


@dataclass(frozen=True, slots=True)
class Progress:
    """One report; several a second may come while a file is downloaded."""

    model: str
    stage: Stage
    file: str = ""
    done: int = 0
    """Bytes finished."""
    total: int | None = None
    """Bytes in all, when known."""
    note: str = ""
    """A sentence to show as it is, such as why there is a wait."""


Report = Callable[[Progress], None]
"""Takes progress; called in the thread that does the work. What it raises stops the work, and what was
received until then is kept for the next attempt."""


def ignore(_: Progress) -> None:
    """Report to nobody."""


class Activity:
    """What is being done to models just now, for a status line; the jobs run in threads."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._jobs: dict[str, Progress] = {}

    @contextmanager
    def of(self, model: str) -> Iterator[Report]:
        """Give a job on ``model`` somebody to report to, and forget it when it ends."""
        def report(progress: Progress) -> None:
            self._jobs[model] = progress

        try:
            yield report
        finally:
            self._jobs.pop(model, None)

    def __str__(self) -> str:
        """Say it in a few words ("downloading tiny.en-q5_1 (34 %)"); empty when nothing is done."""
        return ", ".join(f"{job.stage} {model}" + (f" ({100 * job.done // job.total} %)" if job.total else "")
                         for model, job in list(self._jobs.items()) if job.stage is not Stage.CHECKING)
