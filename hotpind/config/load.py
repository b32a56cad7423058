"""Reads the settings: a TOML file, then the environment; a mistake is one sentence with key, line and expectation."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hotpind.config.schema import Config
from hotpind.errors import ConfigError

ENV_PREFIX = "HOTPIN_"
DEFAULT_FILES = (Path("/etc/hotpin/hotpin.toml"),)
NOT_SETTINGS = frozenset({"HOTPIN_CONFIG", "HOTPIN_PYTHON", "HOTPIN_CACHE", "HOTPIN_START_PATIENCE"})
"""Variables with the prefix that are not settings: the file's own path, and what set-up scripts and package use."""

_HEADER = re.compile(r"^\s*\[{1,2}\s*([^\]]+?)\s*\]{1,2}\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_\-\"'.]+)\s*=")

Location = tuple[str | int, ...]


def load_config(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the settings from ``path``, else $HOTPIN_CONFIG, else /etc/hotpin/hotpin.toml if it is there.

    Raises `ConfigError`.
    """
    if path is None and environ.get("HOTPIN_CONFIG"):
        path = Path(environ["HOTPIN_CONFIG"])
    if path is None:
        path = next((file for file in DEFAULT_FILES if _readable(file)), None)
    return load_config_file(path, environ)


def load_config_file(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the settings from one file (none: the defaults) and the environment.

    ``HOTPIN_<SECTION>__<KEY>`` overrides a key, with ``__`` between the levels (``HOTPIN_CHAT__GROQ__BASE_URL``);
    its value is written as in TOML, text may be bare. A variable with the prefix that is no setting is a mistake too.
    Raises `ConfigError` naming every mistake, a line each.
    """
    text = _read(path) if path is not None else ""
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: this is not valid TOML: {error}") from None
    from_env = dict(_environment(environ))
    for location, (_, value) in from_env.items():
        _put(data, location, value)
    mistakes = [_no_setting(name) for name in sorted(environ) if _claims_to_be_one(name) and "__" not in name]
    config: Config | None = None
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        sources: dict[Location, str] = {location: name for location, (name, _) in from_env.items()}
        mistakes = [*(_sentence(detail, path, text, sources) for detail in error.errors(include_url=False)), *mistakes]
    if config is None or mistakes:
        raise ConfigError("\n".join(mistakes))
    return config


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give another with --config") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text, as TOML must be") from None


def _environment(environ: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], tuple[str, Any]]]:
    for name in sorted(environ):
        if not _claims_to_be_one(name) or "__" not in name:
            continue
        location = tuple(name[len(ENV_PREFIX):].lower().split("__"))
        yield location, (name, _environment_value(environ[name], location))


def _claims_to_be_one(name: str) -> bool:
    """Tell whether a variable is meant to be a setting: it has the prefix and is no other thing of ours."""
    return name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS


def _no_setting(name: str) -> str:
    """Say what is wrong with a variable without ``__``; a single ``_`` in its place is the likeliest slip."""
    meant = next((known for known in _variables(Config, ENV_PREFIX) if known.replace("__", "_") == name), None)
    example = meant or "HOTPIN_SERVER__PORT"
    return (f"{name}: there is no such setting; a variable is written HOTPIN_<SECTION>__<KEY> with two underscores "
            f"between the levels, {'here' if meant else 'such as'} {example}")


def _variables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        name = prefix + key.upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, f"{name}__")
        else:
            yield name


def _environment_value(raw: str, location: tuple[str, ...]) -> Any:
    if _is_text_setting(location):
        return raw
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _is_text_setting(location: tuple[str, ...]) -> bool:
    """Tell whether the key at ``location`` holds text, so that ``HOTPIN_SERVER__HOST=127.0.0.1`` needs no quotes."""
    model: type[BaseModel] = Config
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return False
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        else:
            return annotation is str
    return False


def _put(data: dict[str, Any], location: tuple[str, ...], value: Any) -> None:
    table = data
    for part in location[:-1]:
        below = table.setdefault(part, {})
        if not isinstance(below, dict):
            below = table[part] = {}
        table = below
    table[location[-1]] = value


def _sentence(detail: ErrorDetails, path: Path | None, text: str, sources: Mapping[Location, str]) -> str:
    location = detail["loc"]
    key = ".".join(str(part) for part in location) or "the file"
    where = next((name for place, name in sources.items()
                  if location[:len(place)] == place or place[:len(location)] == location), None)
    if where is None:
        line = _line_of(text, location)
        where = f"{path}, line {line}" if line else str(path or "the settings")
    return f"{where}: {key}: {_expectation(detail)}"


def _expectation(detail: ErrorDetails) -> str:
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return "there is no such key; see docs/configuration.md for the ones there are"
    if kind == "missing":
        return "this key is required here"
    message = detail["msg"]
    for begin in ("Value error, ", "Input "):
        message = message.removeprefix(begin)
    if isinstance(given, str | int | float | bool):
        shown = repr(given) if len(repr(given)) <= 60 else repr(given)[:57] + "..."
        return f"{message}, but it is {shown}"
    return message


def _line_of(text: str, location: Location) -> int | None:
    """Find the line (1-based) on which the key at ``location`` is set; its table's header when the key is not there."""
    names = [part for part in location if isinstance(part, str)]
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    best: tuple[int, int] | None = None
    wanted_index = next((part for part in location if isinstance(part, int)), None)
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        key = _KEY.match(line)
        if header:
            table = _split(header.group(1))
            counts[table] = counts.get(table, -1) + 1
            here = table
        elif key:
            here = (*table, *_split(key.group(1)))
        else:
            continue
        depth = len(here)
        if here != tuple(names[:depth]) or (wanted_index is not None and counts.get(table, 0) != wanted_index
                                            and line.lstrip().startswith("[[")):
            continue
        if wanted_index is not None and counts.get(table, 0) not in {0, wanted_index}:
            continue
        if best is None or depth > best[0] or (wanted_index is not None and depth == best[0]):
            best = (depth, number)
    return best[1] if best else None


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
