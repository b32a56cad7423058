"""`hotpinctl models`: list, fetch, check and remove the models that the engines run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.table import Table

from hotpind.config.load import load_config
from hotpind.config.paths import models_dir
from hotpind.errors import HotpinError, ModelFileError
from hotpind.models.catalogue import ModelEntry
from hotpind.models.files import megabytes
from hotpind.models.progress import Progress, Report, Stage
from hotpind.models.store import ModelStore, describe_size

models_app = typer.Typer(no_args_is_help=True, add_completion=False, help="The models that the engines run.")

PLAIN_STEP_PERCENT = 10
"""How often a line is printed where there is no terminal to draw on."""
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

Directory = Annotated[Path | None, typer.Option("--dir", help="Directory of the models, in place of the settings'.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="File with the settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names from `hotpinctl models list`.")]


@models_app.command("list")
def list_models(directory: Directory = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show the known models and which are installed."""
    with _outcome(as_json) as outcome:
        store = _store(directory, config)
        rows = [(entry, store.installed(entry.name) is not None) for entry in store.catalogue.values()]
        outcome["directory"] = str(store.root)
        outcome["models"] = [_described(entry, installed) for entry, installed in rows]
        if not as_json:
            _print_table(store, rows)


@models_app.command()
def pull(names: Names = None, default: Annotated[bool, typer.Option(
             "--default", help="Fetch the default set.")] = False,
         directory: Directory = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Fetch models; without names, those that the settings ask for.

    What is installed already is left as it is, and what was interrupted goes on where it stopped.
    """
    with _outcome(as_json) as outcome:
        store = _store(directory, config)
        wanted = [*(names or []), *(store.catalogue.defaults() if default else [])]
        outcome["directory"] = str(store.root)
        outcome["models"] = []
        for name in dict.fromkeys(wanted or _configured(store, config)):
            before = store.installed(name)
            with _progress() as report:
                files = store.ensure(name, report)
            paths = [str(path) for path in (files.main, files.config, files.projector) if path]
            outcome["models"].append({"name": name, "role": files.role, "fetched": before is None, "files": paths})
            if not as_json:
                typer.echo(f"{name}: {'is there' if before else 'installed'}")


@models_app.command()
def verify(names: Names = None, directory: Directory = None, config: ConfigFile = None,
           as_json: AsJson = False) -> None:
    """Read the files of models, by default all installed ones, and compare them with their digests."""
    with _outcome(as_json) as outcome:
        store = _store(directory, config)
        outcome["directory"] = str(store.root)
        outcome["models"] = []
        for name in names or [name for name in store.catalogue if (store.root / name).exists()]:
            problem = None
            try:
                with _progress() as report:
                    store.verify(name, report)
            except ModelFileError as error:
                problem = str(error)
            outcome["models"].append({"name": name, "ok": problem is None, "problem": problem})
            if not as_json:
                typer.echo(f"{name}: {problem or 'intact'}")
        if any(not model["ok"] for model in outcome["models"]):
            raise typer.Exit(EXIT_FAILED)


@models_app.command()
def remove(names: Annotated[list[str], typer.Argument(help="Names of installed models.")],
           directory: Directory = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Delete models and what is only theirs."""
    with _outcome(as_json) as outcome:
        store = _store(directory, config)
        outcome["directory"] = str(store.root)
        outcome["models"] = []
        for name in names:
            with _progress() as report:
                freed = store.remove(name, report)
            outcome["models"].append({"name": name, "freed_bytes": freed})
            if not as_json:
                typer.echo(f"{name}: removed, {megabytes(freed)} are free again")


def _store(directory: Path | None, config: Path | None) -> ModelStore:
    return ModelStore(directory.absolute() if directory else models_dir(load_config(config)))


def _configured(store: ModelStore, config: Path | None) -> list[str]:
    """Names of the models that the settings ask for; files and servers elsewhere need no fetching."""
    settings = load_config(config)
    asked = {"stt.model": "" if settings.stt.uri else settings.stt.model,
             "tts.voice": "" if settings.tts.uri else settings.tts.voice,
             "chat.local.model": settings.chat.local.model}
    return [name for name in asked.values() if name in store.catalogue]


@contextmanager
def _outcome(as_json: bool) -> Iterator[dict[str, Any]]:
    """Collect a command's result; print it, and turn an error into one sentence and an exit status."""
    outcome: dict[str, Any] = {}
    status = 0
    try:
        yield outcome
    except HotpinError as error:
        outcome["error"] = str(error)
        status = EXIT_FAILED
    except KeyboardInterrupt:
        outcome["error"] = "interrupted; run the same command again to go on where it stopped"
        status = EXIT_INTERRUPTED
    except typer.Exit as leave:
        status = leave.exit_code
    if as_json:
        typer.echo(json.dumps(outcome, indent=2))
    elif "error" in outcome:
        typer.echo(f"hotpinctl: {outcome['error']}", err=True)
    if status:
        raise typer.Exit(status)


def _described(entry: ModelEntry, installed: bool) -> dict[str, Any]:
    return {
        "name": entry.name, "title": entry.title, "role": entry.role, "licence": entry.licence,
        "languages": entry.languages, "bytes": entry.expected_bytes,
        "bytes_exact": all(file.size for file in entry.files), "memory_mb": entry.memory_mb, "suits": entry.suits,
        "projector": entry.projector, "source": entry.source.kind, "default": entry.default,
        "installed": installed,
    }


def _print_table(store: ModelStore, rows: list[tuple[ModelEntry, bool]]) -> None:
    if not sys.stdout.isatty():
        for entry, installed in rows:
            typer.echo("\t".join([entry.name, entry.role, "installed" if installed else "-", describe_size(entry),
                                  f"{entry.memory_mb} MB of memory", entry.licence, entry.suits or entry.title]))
        return
    table = Table(title=f"Models ({store.root})", title_justify="left")
    for heading in ("", "name", "for", "disk", "memory", "licence", "suits"):
        table.add_column(heading, justify="right" if heading in {"disk", "memory"} else "left",
                         no_wrap=heading == "name")
    for entry, installed in rows:
        table.add_row("*" if installed else "", entry.name, entry.role, describe_size(entry),
                      f"{entry.memory_mb} MB", entry.licence, entry.suits or entry.title)
    console = Console()
    console.print(table)
    console.print("* installed")


@contextmanager
def _progress() -> Iterator[Report]:
    """Show progress on stderr: bars on a terminal, now and then a line elsewhere."""
    if not sys.stderr.isatty():
        yield _PlainLines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with ProgressBars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    """A bar for each stage of each file."""

    def __init__(self, bars: ProgressBars) -> None:
        self._bars = bars
        self._tasks: dict[tuple[str, Stage, str], TaskID] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            self._bars.console.print(f"{progress.model}: {progress.note}")
            return
        key = (progress.model, progress.stage, progress.file)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(f"{progress.stage} {progress.file}", total=progress.total)
        self._bars.update(self._tasks[key], completed=progress.done, total=progress.total)


class _PlainLines:
    """A line when a stage begins and at every tenth of it."""

    def __init__(self) -> None:
        self._key: tuple[str, Stage, str] | None = None
        self._next_percent = 0

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            typer.echo(f"{progress.model}: {progress.note}", err=True)
            return
        key = (progress.model, progress.stage, progress.file)
        if key != self._key:
            self._key, self._next_percent = key, 0
        percent = 100 * progress.done // progress.total if progress.total else 0
        if percent >= self._next_percent:
            self._next_percent = percent - percent % PLAIN_STEP_PERCENT + PLAIN_STEP_PERCENT
            of = f" {percent} % of {megabytes(progress.total)}" if progress.total else ""
            typer.echo(f"{progress.model}: {progress.stage} {progress.file}{of}", err=True)


if __name__ == "__main__":
    models_app(prog_name="hotpinctl models")
