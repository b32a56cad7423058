"""Markers shared by every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator

# As the supervisor sets it for the engines: tests that load one in this process share the cores with other things.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

MEASURING = ("models", "netns", "systemd", "slow")
"""Markers of tests whose prints are figures worth keeping."""
MOST_LINES = 300
MOST_OF_ONE = 8
"""Lines of one test, so that one that passes on a child's log does not crowd out the others."""
LONGEST_LINE = 220


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers (strict markers are on), and let children be interrupted.

    A shell that starts the tests in the background has them ignore SIGINT, which every child would inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "models: needs the default models (scripts/test fetches them)")
    config.addinivalue_line("markers", "netns: makes network namespaces (needs root)")
    config.addinivalue_line("markers", "systemd: boots a Debian container with systemd-nspawn (needs root)")
    config.addinivalue_line("markers", "slow: takes long, or waits for real time; `scripts/test unit` leaves it out")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note in the report that the test measures: its keywords would not tell, as folders have such names too."""
    report = yield
    if any(item.get_closest_marker(name) for name in MEASURING):
        report.user_properties.append(("measuring", True))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests that passed have measured, which pytest shows of failed ones only."""
    lines: list[str] = []
    last = ""
    for report in terminalreporter.stats.get("passed", []):
        if ("measuring", True) not in map(tuple, report.user_properties):
            continue
        printed = [line.rstrip() for line in report.capstdout.splitlines() if line.strip()]
        if not printed:
            continue
        file, _, name = report.nodeid.partition("::")
        if file != last:
            lines.append(file)
            last = file
        printed[0] = f"{name}: {printed[0]}"
        lines += [f"  {line}"[:LONGEST_LINE] for line in printed[:MOST_OF_ONE]]
        if len(printed) > MOST_OF_ONE:
            lines.append(f"  ({len(printed) - MOST_OF_ONE} lines more)")
    if lines:
        terminalreporter.section("measured")
        for line in lines[:MOST_LINES]:
            terminalreporter.line(line)
        if len(lines) > MOST_LINES:
            terminalreporter.line(f"({len(lines) - MOST_LINES} lines more are left out)")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Take back what a command that ran in this process set for its children."""
    before = {name: value for name, value in os.environ.items() if name.startswith("HOTPIN_")}
    yield
    for name in [name for name in os.environ if name.startswith("HOTPIN_")]:
        if name not in before:
            del os.environ[name]
    os.environ.update(before)
