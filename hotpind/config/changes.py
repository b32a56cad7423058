"""What differs between two configurations, and which of it a running daemon can take over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from hotpind.config.schema import Config


def changed_keys(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Return the dotted names of the keys that differ: those a reload applies, and those that need a restart."""
    live: list[str] = []
    later: list[str] = []
    for name, is_live in _differences(old, new, ""):
        (live if is_live else later).append(name)
    return live, later


def merged(old: Config, new: Config, names: Iterable[str]) -> Config:
    """Return ``old`` with the named keys taken from ``new``."""
    data = old.model_dump()
    for name in names:
        source: Any = new
        target = data
        *tables, key = name.split(".")
        for table in tables:
            source, target = getattr(source, table), target[table]
        target[key] = getattr(source, key)
    return Config.model_validate(data)


def is_live(model: type[BaseModel], key: str) -> bool:
    """Tell whether a reload applies a key, from its declaration in the schema."""
    extra = model.model_fields[key].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("live"))


def _differences(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[tuple[str, bool]]:
    for key in type(old).model_fields:
        before, after = getattr(old, key), getattr(new, key)
        if before == after:
            continue
        if isinstance(before, BaseModel):
            yield from _differences(before, after, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", is_live(type(old), key)
