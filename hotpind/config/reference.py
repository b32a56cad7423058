"""Writes the configuration reference (docs/configuration.md) and config/hotpin.toml from the schema.

``python -m hotpind.config.reference`` writes both; a test checks that they are up to date.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hotpind.config.changes import is_live
from hotpind.config.schema import BackendTable, Config, GroqModel

ROOT = Path(__file__).parent.parent.parent
TOML_FILE = ROOT / "config" / "hotpin.toml"
MARKDOWN_FILE = ROOT / "docs" / "configuration.md"

_TOML_HEAD = """\
# Settings of the Hotpin appliance. Every key is shown with its default; take away the # to change it.
# The environment overrides this file: HOTPIN_<SECTION>__<KEY>, such as HOTPIN_SERVER__PORT=8001.
# `hotpind --check-config --config FILE` checks it; keys marked (reload) are applied by `systemctl reload hotpind`.
"""

_EXAMPLE_BACKEND = BackendTable(name="nas", url="http://nas:11434/v1", model="llama3.2")

_MARKDOWN_HEAD = """\
# Configuration

Made from `hotpind/config/schema.py` by `python -m hotpind.config.reference`; edit there.

The file is TOML: `/etc/hotpin/hotpin.toml`, or the one named with `--config`. Unknown keys and wrong types are errors
that name key, line and expectation; `hotpind --check-config` tells. The environment overrides the file:
`HOTPIN_<SECTION>__<KEY>` with `__` between levels (`HOTPIN_CHAT__GROQ__BASE_URL`); another variable that begins with
`HOTPIN_` is an error as well. Keys marked *reload* are applied by `systemctl reload hotpind` without dropping a device;
the others need `systemctl restart hotpind`, and the status names them.
"""


def toml() -> str:
    """Return the settings file with every key and its default, commented out."""
    parts = [_TOML_HEAD]
    for name, model in _sections(Config):
        parts.append(f"\n# {_summary(model)}\n[{name}]")
        for key, field in _keys(model):
            mark = " (reload)" if is_live(model, key) else ""
            parts += [f"# {line}" for line in textwrap.wrap(f"{field.description}{mark}", 110)]
            default = field.get_default(call_default_factory=True)
            if isinstance(default, list) and default and isinstance(default[0], BaseModel):
                parts += _tables(f"{name}.{key}", default)
            else:
                parts.append(f"#{key} = {_value(default)}")
    parts.append("\n# " + _summary(BackendTable))
    parts += _tables("chat.backend", [_EXAMPLE_BACKEND])
    return "\n".join(parts) + "\n"


def _tables(name: str, entries: Sequence[BaseModel]) -> list[str]:
    """Return an array of tables, commented out; the first one explains every key."""
    lines = []
    for number, entry in enumerate(entries):
        lines.append(f"#[[{name}]]")
        for key, field in type(entry).model_fields.items():
            if number == 0:
                default = "required" if field.is_required() else f"default {_value(field.default)}"
                lines += [f"# {line}" for line in textwrap.wrap(f"{field.description} ({default})", 110)]
            lines.append(f"#{key} = {_value(getattr(entry, key))}")
    return lines


def markdown() -> str:
    """Return the reference as a page."""
    parts = [_MARKDOWN_HEAD]
    tables: list[tuple[str, type[BaseModel]]] = [
        *_sections(Config), ("chat.groq.models", GroqModel), ("chat.backend", BackendTable)]
    for name, model in tables:
        title = f"[[{name}]]" if model in {GroqModel, BackendTable} else f"[{name}]"
        parts.append(f"\n## `{title}`\n\n{_summary(model)}\n\n| key | type | default | what it is | |\n"
                     "| --- | --- | --- | --- | --- |")
        for key, field in _keys(model):
            default = "required" if field.is_required() else f"`{_short(field)}`"
            text = str(field.description).replace("|", "\\|")
            reload = "reload" if is_live(model, key) else ""
            parts.append(f"| `{key}` | {_type(field)} | {default} | {text} | {reload} |")
    return "\n".join(parts) + "\n"


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"{prefix}{key}", field.annotation
            yield from _sections(field.annotation, f"{prefix}{key}.")


def _keys(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for key, field in model.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            yield key, field


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _short(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, list) and default and isinstance(default[0], BaseModel):
        return ", ".join(entry.name for entry in default)
    return _value(default)


def _type(field: FieldInfo) -> str:
    annotation = field.annotation
    choices = get_args(annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return " or ".join(f'`"{choice}"`' for choice in choices)
    if choices:
        return "list"
    names: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "text")


def main() -> None:
    """Write both files."""
    TOML_FILE.write_text(toml(), encoding="utf-8")
    MARKDOWN_FILE.write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
