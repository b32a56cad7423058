"""What the prose says is true of the code: links, commands, settings, messages, examples."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from pydantic import BaseModel
from typer.core import TyperGroup

from hotpind.cli.ctl import app
from hotpind.cli.daemon import command as hotpind_command
from hotpind.config import reference
from hotpind.config.load import load_config_file
from hotpind.config.schema import BackendTable, Config, GroqModel
from hotpind.conversation import prompts
from hotpind.discovery.records import Service
from hotpind.wearable import protocol
from tests.places import TOP

PAGES = sorted([*TOP.glob("*.md"), *(TOP / "docs").glob("*.md")])
PAGE_IDS = [page.name for page in PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_SCRIPT = re.compile(r"(?<![\w/.])scripts/[\w.-]*\w")
_VARIABLE = re.compile(r"(HOTPIN_[A-Z_]+__[A-Z_]+)=(\S+)")

each_page = pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, kind: str) -> list[str]:
    return [body for name, body in _FENCE.findall(text_of(page)) if name == kind]


def prose_of(page: Path) -> str:
    return _FENCE.sub("", text_of(page))


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#{1,6} +(.+)$", prose_of(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.replace("`", "").lower()) for head in heads]
    return {head.strip().replace(" ", "-") for head in plain}


LOOKS: dict[str, tuple[int, Callable[[Path], Sequence[object]]]] = {
    "links": (30, lambda page: _LINK.findall(prose_of(page))),
    "links to headings": (8, lambda page: [link for link in _LINK.findall(prose_of(page)) if "#" in link]),
    "commands": (40, lambda page: list(calls(page))),
    "options": (20, lambda page: [word for _, rest in calls(page) for word in rest.split() if word.startswith("-")]),
    "scripts": (20, lambda page: _SCRIPT.findall(text_of(page))),
    "settings": (30, lambda page: list(settings_in(page))),
    "variables": (3, lambda page: _VARIABLE.findall(text_of(page))),
    "examples of settings": (2, lambda page: fences(page, "toml")),
    "examples of JSON": (5, lambda page: fences(page, "json")),
}
"""What is looked for in the pages, and how many of them there are at least over all pages.

Without, a pattern that finds nothing any more would let every test of what it finds pass.
"""


@pytest.mark.parametrize("kind", LOOKS)
def test_there_is_something_to_look_at(kind: str) -> None:
    least, look = LOOKS[kind]
    assert sum(len(look(page)) for page in PAGES) >= least


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose_of(page)):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        name, _, fragment = target.partition("#")
        file = (page.parent / unquote(name)).resolve() if name else page
        assert file.is_relative_to(TOP), f"{target} leaves the project"
        assert file.is_file(), f"{page.name} links to {target}, which is not there"
        if fragment:
            assert fragment in anchors(file), f"{page.name} links to {target}, which is no heading"


def test_the_picture_is_well_formed() -> None:
    files = list((TOP / "docs").glob("*.svg"))
    assert files
    for file in files:
        assert ET.parse(file).getroot().tag.endswith("svg")


# Commands.

Tree = dict[str, set[str]]


def tree() -> Tree:
    """All commands of hotpinctl and hotpind with their options."""
    found: Tree = {}

    def walk(node: object, name: str) -> None:
        known = [*(option for parameter in getattr(node, "params", [])
                   for option in (*parameter.opts, *parameter.secondary_opts)), "--help"]
        found[name] = {option for option in known if option.startswith("-")}
        if isinstance(node, TyperGroup):
            context = typer.Context(node)
            for word in node.list_commands(context):
                walk(node.get_command(context, word), f"{name} {word}")

    walk(typer.main.get_command(app), "hotpinctl")
    daemon = typer.Typer(add_completion=False)
    daemon.command()(hotpind_command)
    walk(typer.main.get_command(daemon), "hotpind")
    return found


TREE = tree()
GROUPS = {name for name in TREE if any(other.startswith(name + " ") for other in TREE)}


def calls(page: Path) -> Iterator[tuple[str, str]]:
    """Every mention of hotpinctl or hotpind with words after it, as (line, what follows the name and the words)."""
    shell = [line.split("#")[0] for body in fences(page, "sh") for line in body.replace("\\\n", " ").splitlines()]
    for line in [*_CODE.findall(prose_of(page)), *shell]:
        for match in re.finditer(r"(?:^|[\s/])(hotpinctl|hotpind) (?=[a-z-])([^|;&]*)", line):
            yield match[1], match[2]


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for program, rest in calls(page):
        words = rest.split()
        name = program
        while name in GROUPS and words and re.fullmatch(r"[a-z]+", words[0]):
            name = f"{name} {words.pop(0)}"
            assert name in TREE, f"{page.name} names `{program} {rest}`"
        for word in words:
            if word.startswith("-"):
                options = TREE[name] | TREE[program]
                assert word.split("=")[0] in options, f"{page.name} gives {name} the option {word}"


def test_the_page_of_commands_names_them_all() -> None:
    text = text_of(TOP / "docs" / "cli.md")
    for name in set(TREE) - GROUPS:
        assert f"`{name}" in text or name == "hotpind", f"docs/cli.md does not name `{name}`"
    for option in TREE["hotpind"] - {"--help"}:
        assert f"`{option}" in text, f"docs/cli.md does not name {option} of hotpind"


@each_page
def test_scripts_exist_and_can_be_run(page: Path) -> None:
    for name in _SCRIPT.findall(text_of(page)):
        file = TOP / name
        assert file.is_file(), f"{page.name} names {name}"
        assert os.access(file, os.X_OK) or file.suffix in {".sh", ".txt"}, f"{name} cannot be run"


# Settings.

def test_the_reference_and_the_settings_file_are_up_to_date() -> None:
    assert text_of(reference.MARKDOWN_FILE) == reference.markdown(), "run python -m hotpind.config.reference"
    assert text_of(reference.TOML_FILE) == reference.toml(), "run python -m hotpind.config.reference"


def test_the_settings_file_is_valid_as_it_is_and_with_every_key_uncommented(tmp_path: Path) -> None:
    assert load_config_file(reference.TOML_FILE, {}) == Config()
    lines = [re.sub(r"^#(?=[a-z_]+ = |\[\[)", "", line) for line in text_of(reference.TOML_FILE).splitlines()]
    file = tmp_path / "all.toml"
    # The list of servers is there twice: as a key with its default, and as the example of a table.
    file.write_text("\n".join(line for line in lines if line != "backend = []"))
    data = tomllib.loads(file.read_text())
    assert set(data) == set(Config.model_fields)
    (server,) = data["chat"]["backend"]
    assert set(server) == set(BackendTable.model_fields)
    assert [set(each) for each in data["chat"]["groq"]["models"]] == 2 * [set(GroqModel.model_fields)]
    loaded = load_config_file(file, {})
    assert loaded.chat.backend == [BackendTable.model_validate(server)]
    assert loaded.model_copy(update={"chat": loaded.chat.model_copy(update={"backend": []})}) == Config()


def test_every_key_is_explained_with_its_default() -> None:
    """Those of the tables that repeat included."""
    text = " ".join(text_of(reference.TOML_FILE).replace("\n# ", " ").split())
    for model in (GroqModel, BackendTable):
        for key, field in model.model_fields.items():
            default = "required" if field.is_required() else f"default {json.dumps(field.default)}"
            assert f"{field.description} ({default}) #{key} = " in text, key


@each_page
def test_examples_of_settings_are_valid(page: Path, tmp_path: Path) -> None:
    for number, body in enumerate(fences(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(body)
        assert load_config_file(file, {}) != Config(), "the example changes nothing"


def settings_in(page: Path) -> Iterator[str]:
    """Every setting that a page names, as ``section.key``."""
    for word in _CODE.findall(prose_of(page)):
        name = re.match(r"([a-z_]+(?:\.[a-z_]+)+)(?: = |$)", word)
        if name and name[1].split(".")[0] in Config.model_fields:
            yield name[1]


@each_page
def test_settings_that_are_named_exist(page: Path) -> None:
    for name in settings_in(page):
        model: object = Config
        for part in name.split("."):
            assert isinstance(model, type), f"{page.name}: {name}"
            assert issubclass(model, BaseModel), f"{page.name}: {name}"
            assert part in model.model_fields, f"{page.name} names {name}, which is no setting"
            model = model.model_fields[part].annotation


def test_environment_variables_that_are_named_are_settings(tmp_path: Path) -> None:
    for page in PAGES:
        for name, value in _VARIABLE.findall(text_of(page)):
            load_config_file(None, {name: value})


# The protocol.

PROTOCOL = TOP / "docs" / "protocol.md"


@pytest.mark.parametrize("message", [
    protocol.receiving(2, 8192), protocol.transcription_stage(), protocol.llm_stage("what is this", has_image=True),
    protocol.tts_stage("This is a cup,"), protocol.error(protocol.NOT_UNDERSTOOD), protocol.idle(),
    protocol.reset_complete(), protocol.speech_end(), protocol.partial_transcript("what is"),
    protocol.sentence("This is a cup,"),
    protocol.connected("esp32-cam-hotpin-001", protocol=2, brain="online"),
    *(f'{{"signal":"{signal}"}}' for signal in protocol.Signal)])
def test_the_messages_are_those_that_are_sent(message: str) -> None:
    assert message in text_of(PROTOCOL)


@pytest.mark.parametrize("sentence", [
    protocol.NOT_UNDERSTOOD, prompts.NO_VOICE, prompts.NO_HEARING, prompts.TOO_LATE, prompts.STOPPING,
    prompts.too_long(Config().limits.recording_s)])
def test_the_errors_are_those_that_are_sent(sentence: str) -> None:
    assert sentence in text_of(PROTOCOL)


def test_the_txt_keys_are_those_that_are_announced() -> None:
    service = Service("id", "hotpin-id.local", "Hotpin", 8000, "1", "paired", tls_port=8443, fingerprint="fp")
    mdns = text_of(PROTOCOL).split("## mDNS")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", mdns, re.MULTILINE)) == set(service.txt(pairing_open=True))


def test_the_limits_are_the_defaults() -> None:
    limits = text_of(PROTOCOL).split("## Limits")[1]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| ([^|]*`[^|]+) \|$", limits, re.MULTILINE)
    pairs = [pair for numbers, names in rows
             for pair in zip(re.findall(r"\d[\d,]*", numbers), re.findall(r"`([^`]+)`", names), strict=False)]
    assert len(pairs) > 6
    for number, name in pairs:
        value: object = Config()
        for part in name.split("."):
            value = getattr(value, part)
        assert isinstance(value, int | float)
        assert float(number.replace(",", "")) == value, name


@each_page
def test_examples_of_json_are_json(page: Path) -> None:
    for body in fences(page, "json"):
        try:
            json.loads(body)
        except ValueError:
            for line in body.splitlines():
                json.loads(line)


# The API.

def test_every_route_and_metric_is_described() -> None:
    pages = text_of(TOP / "docs" / "api.md") + text_of(PROTOCOL)
    code = "".join(text_of(file) for file in [TOP / "hotpind" / "app.py", *(TOP / "hotpind" / "web").glob("*.py")])
    routes = set(re.findall(r"\"(/(?:api/|metrics|health|voices|pair|image|ws)[^\"\s]*)\"", code))
    assert len(routes) > 12
    for route in routes:
        assert route in pages, f"no page describes {route}"
    metrics = set(re.findall(r"\"(hotpin_[a-z_]+)\"", code))
    assert len(metrics) > 8
    for metric in metrics:
        assert metric in pages, f"docs/api.md does not describe {metric}"


def test_every_metric_that_is_described_exists() -> None:
    code = "".join(text_of(file) for file in [TOP / "hotpind" / "app.py", TOP / "hotpind" / "web" / "metrics.py"])
    described = re.findall(r"`(hotpin_[a-z_]+)`", text_of(TOP / "docs" / "api.md"))
    assert len(described) > 8
    for metric in described:
        assert f'"{metric.removesuffix("_total")}"' in code, f"{metric} is not exported"


def test_a_turns_record_is_described() -> None:
    from hotpind.conversation.turn import TurnRecord
    text = text_of(TOP / "docs" / "api.md")
    for field in dataclasses.fields(TurnRecord):
        assert f"`{field.name}`" in text or field.name == "began", f"docs/api.md does not describe {field.name}"


# The firmware's examples.

@pytest.mark.skipif(shutil.which("gcc") is None, reason="the examples need a C compiler")
def test_the_firmware_examples_compile(tmp_path: Path) -> None:
    examples = fences(TOP / "docs" / "firmware.md", "c")
    assert len(examples) >= 4
    code = re.sub(r"#include .*\n", "", "\n".join(examples))
    file = tmp_path / "firmware.c"
    file.write_text('#include "esp_idf.h"\n' + code)
    done = subprocess.run(
        ["gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function",
         "-I", str(Path(__file__).parent), "-c", str(file), "-o", str(tmp_path / "firmware.o")],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
