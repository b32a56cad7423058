"""The unit file, as systemd in the booted machine sees it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.systemd.conftest import MachineMaker, drop_in, prop

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(1200)]

WORST_EXPOSURE = 1.5


def test_verify_is_silent_and_the_sandbox_is_tight(boot: MachineMaker) -> None:
    host = boot()
    verified = host.run("systemd-analyze", "verify", "hotpind.service")
    assert verified.stdout + verified.stderr == ""
    text = host.run("systemd-analyze", "security", "--no-pager", "hotpind.service").stdout
    match = re.search(r"Overall exposure level for hotpind.service: ([0-9.]+)", text)
    assert match is not None, text
    print(f"exposure {match[1]}")
    assert float(match[1]) <= WORST_EXPOSURE


def test_the_package_and_the_examples_fit_the_unit(boot: MachineMaker) -> None:
    host = boot()
    folder = host.root / "etc/systemd/system/hotpind.service.d"
    folder.mkdir(parents=True)
    shutil.copy(host.root / "usr/share/doc/hotpind/examples/jetson-cuda.conf", folder)
    verified = host.run("systemd-analyze", "verify", "hotpind.service")
    assert verified.stdout + verified.stderr == ""
    with (folder / "jetson-cuda.conf").open("a") as example:
        example.write("\nNonsense=yes\n")
    assert "Nonsense" in host.run("systemd-analyze", "verify", "hotpind.service", check=False).stderr
    (folder / "jetson-cuda.conf").unlink()

    # README.md's way to another disk: without it the sandbox lets nobody write there, not even root.
    (host.root / "srv/models").mkdir()
    write = "nsenter -t $(systemctl show --property MainPID --value hotpind) -m touch /srv/models/file"
    host.run("systemctl", "start", "hotpind")
    refused = host.run("sh", "-c", write, check=False)
    assert "Read-only file system" in refused.stderr
    drop_in(host, "ReadWritePaths=/srv/models")
    host.run("systemctl", "restart", "hotpind")
    host.run("sh", "-c", write)

    # An upgrade that does not come to its end leaves a version that starts as quickly as before.
    def compiled() -> int:
        return len(list((host.root / "opt/hotpind").rglob("*.pyc")))

    before = compiled()
    assert before
    host.run("/var/lib/dpkg/info/hotpind.prerm", "upgrade", "9.9.9")
    assert prop(host, "ActiveState") == "inactive"
    assert compiled() == before


WRITER = """
import logging, os, sys
from hotpind.system.logs import Log, fields
settings = Log("info")
log = logging.getLogger("hotpind.conversation")
log.warning("turn %s", "ended", extra=fields(turn="4f2a", device="kitchen", stage="turn", first_audio_ms=480))
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broke")
os.write(2, b"from an engine\\n")
settings.close()
"""


def test_messages_in_the_journal_have_fields_and_come_once(boot: MachineMaker) -> None:
    host = boot()
    host.run("systemd-run", "--wait", "--unit=writer", "--quiet", "/opt/hotpind/venv/bin/python", "-c", WRITER)
    host.run("journalctl", "--sync")
    lines = host.run("journalctl", "--unit=writer", "--output=json", "--no-pager").stdout.splitlines()
    entries = [json.loads(line) for line in lines]
    # systemd's own messages about the unit have no such identifier.
    ours = [entry for entry in entries if entry.get("SYSLOG_IDENTIFIER") in {"hotpind", "python"}]
    # An engine's output takes another way into the journal than the messages, so it may come earlier or later.
    assert [entry["MESSAGE"].splitlines()[0] for entry in ours if entry["_TRANSPORT"] == "stdout"] == ["from an engine"]
    ended, broke = (entry for entry in ours if entry["_TRANSPORT"] == "journal")
    assert (ended["MESSAGE"], broke["MESSAGE"].splitlines()[0]) == ("turn ended", "broke")
    assert (ended["PRIORITY"], broke["PRIORITY"]) == ("4", "3")
    assert {name: value for name, value in ended.items() if name.startswith("HOTPIN_")} == {
        "HOTPIN_TURN": "4f2a", "HOTPIN_DEVICE": "kitchen", "HOTPIN_STAGE": "turn", "HOTPIN_FIRST_AUDIO_MS": "480"}
    assert ended["LOGGER"] == "hotpind.conversation"
    assert "ZeroDivisionError" in broke["MESSAGE"]
    assert "CODE_ARGS" not in ended
