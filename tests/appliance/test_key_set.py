"""`hotpinctl key` against a running daemon: used without a restart, shown to nobody."""

from __future__ import annotations

import asyncio
import json
import signal
import stat

import pytest

from hotpind.chat.key import CREDENTIAL
from hotpind.pin.client import Pin
from tests.appliance.clouded import ask
from tests.appliance.harness import Daemon
from tests.fakes.groq import KEY, FakeGroq

USED_WITHIN_S = 20.0
"""Promised are five seconds; how many it took is printed."""
pytestmark = pytest.mark.slow


async def doctor(daemon: Daemon) -> tuple[str, str]:
    """Return the last that the doctor says of the key: text and verdict."""
    done = await asyncio.to_thread(daemon.ctl, "doctor", "--json", check=False)
    assert KEY not in done.stdout + done.stderr
    found = [each for each in json.loads(done.stdout) if each["topic"] == "key"]
    return found[-1]["text"], found[-1]["verdict"]


async def state_becomes(daemon: Daemon, state: str) -> float:
    """Wait until Groq is in a state; returns how long that took."""
    begun = asyncio.get_running_loop().time()
    while True:
        status = await asyncio.to_thread(daemon.status)
        taken = asyncio.get_running_loop().time() - begun
        if next(row["state"] for row in status["backends"] if row["name"] == "groq") == state:
            return taken
        assert taken < USED_WITHIN_S, status["backends"]
        await asyncio.sleep(0.05)


async def test_a_key_is_set_used_shown_to_be_there_and_removed_while_the_daemon_runs() -> None:
    async with FakeGroq() as fake:
        daemon = await asyncio.to_thread(Daemon, {"CHAT__GROQ__BASE_URL": fake.url, "CHAT__LOCAL__MAX_TOKENS": "16"})
        stored = daemon.root / "state" / CREDENTIAL

        async def key(*arguments: str, stdin: str = "", code: int = 0) -> str:
            done = await asyncio.to_thread(daemon.ctl, "key", *arguments, check=False, stdin=stdin)
            assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
            assert "Traceback" not in done.stderr
            assert KEY not in done.stdout + done.stderr
            return done.stdout + done.stderr

        try:
            async with Pin(daemon.url, "key holder") as pin:
                assert (await ask(pin, holes=True)).extra["backend"] == "local"
                assert fake.connections == 0, "without a key nobody is asked"
                assert "no key" in await key("status", code=1)

                refused = await key("set", stdin="gsk_wrong\n", code=1)
                assert "rejects this key" in refused
                assert not stored.exists()

                process = daemon.process.pid
                await key("set", stdin=f"{KEY}\n")
                assert stored.read_text().strip() == KEY
                assert stat.S_IMODE(stored.stat().st_mode) == 0o600
                assert stat.S_IMODE(stored.parent.stat().st_mode) == 0o700
                print(f"used {await state_becomes(daemon, 'online'):.1f} s after it was set")
                assert (await ask(pin)).extra["backend"] == "groq"
                assert "There is a key: from the state directory" in (shown := await key("status", "--check"))
                assert "groq is online" in shown
                assert "takes the key" in shown
                assert daemon.process.pid == process
                assert daemon.process.poll() is None

                # A key that others can read is not used, and the status says what to do.
                stored.chmod(0o644)
                await state_becomes(daemon, "off")
                detail = next(row["detail"] for row in daemon.status()["backends"] if row["name"] == "groq")
                assert f"chmod 600 {stored}" in detail
                assert daemon.status()["faults"] == [f"groq: {detail}"]
                assert (await doctor(daemon))[1] == "fault"
                stored.chmod(0o600)
                await state_becomes(daemon, "online")
                assert daemon.status()["faults"] == []
                assert (await doctor(daemon))[1] == "fine"

                fake.key = "gsk_another"
                daemon.process.send_signal(signal.SIGHUP)
                assert (await ask(pin)).extra["backend"] == "local"
                await state_becomes(daemon, "key-rejected")
                (fault,) = daemon.status()["faults"]
                assert fault.startswith("groq rejected the API key")
                assert fault in (await asyncio.to_thread(daemon.ctl, "status")).stdout
                assert (await doctor(daemon)) == (fault, "fault")
                fake.key = KEY

                await key("remove")
                assert not stored.exists()
                await state_becomes(daemon, "off")
                asked = len(fake.requests)
                turn = await ask(pin, holes=True)
                assert (turn.extra["backend"], turn.extra["reason"]) == ("local", "")
                assert len(fake.requests) == asked
            shown = daemon.log + json.dumps(daemon.status()) + (await asyncio.to_thread(daemon.ctl, "status")).stdout
            assert KEY not in shown
        finally:
            assert await asyncio.to_thread(daemon.stop) == 0
        assert "Traceback" not in daemon.log, daemon.log
        written = [path for path in daemon.root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
        assert not written, "the key is nowhere any more"
