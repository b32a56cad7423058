"""From nothing to a connected pin, against the appliance's real pairing."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import PairingService
from hotpind.errors import PinError, PinOfflineError, PinRefusedError
from hotpind.pin import pairing
from hotpind.pin.find import Found
from hotpind.pin.home import Wishes, reach
from hotpind.pin.memory import Memory, load_memory, save_memory
from hotpind.web import pairing_routes
from hotpind.web.pairing_routes import ApplianceFacts
from hotpind.web.replies import errors_middleware
from hotpind.web.tls import load_tls
from tests.pin.appliance import Appliance
from tests.waiting import until

PIN = "pin-of-the-test"
ID = "0123456789ab"


class Home:
    """An appliance with the real pairing service, and the announcement that a browse would find."""

    def __init__(self, registry: DeviceRegistry, service: PairingService, appliance: Appliance) -> None:
        self.registry = registry
        self.service = service
        self.appliance = appliance
        self.browsed: list[str] = []
        self.facts = ApplianceFacts(ID, "Hotpin Test")
        self.fingerprint = ""
        self.said: list[str] = []
        self.asked: list[str] = []
        """Paths that anybody asked for."""

    async def browse(self, wanted: str) -> Found:
        self.browsed.append(wanted)
        if wanted not in ("", ID):
            raise PinOfflineError(f"{wanted} is not here.")
        tls_port = self.appliance.port if self.appliance.tls else 0
        return Found("Hotpin Test", ID, (self.appliance.host,), self.appliance.port, tls_port=tls_port,
                     fingerprint=self.fingerprint)

    async def answered(self, wishes: Wishes) -> bool:
        """Reach the appliance and ask something."""
        pin = await reach(wishes, browse=self.browse, say=self.said.append)
        try:
            return (await pin.ask(bytes(4000), realtime=False)).answered
        finally:
            await pin.close()


@contextlib.asynccontextmanager
async def home_in(directory: Path, *, tls: bool = False, host: str = "127.0.0.1") -> AsyncIterator[Home]:
    registry = await DeviceRegistry.open(directory)
    service = PairingService(registry, first_window_minutes=1)
    appliance = Appliance()
    appliance.host = host
    home = Home(registry, service, appliance)

    def add_pairing(app: web.Application) -> None:
        @web.middleware
        async def listen(request: web.Request, handler: Handler) -> web.StreamResponse:
            home.asked.append(request.path)
            return await handler(request)

        app.middlewares.extend((listen, errors_middleware))
        pairing_routes.add_routes(app, service, lambda: home.facts)

    appliance.more_routes.append(add_pairing)
    appliance.knows = lambda token: registry.authenticate(token) is not None
    if tls:
        identity = await load_tls(directory, "hotpin-test.local")
        appliance.tls, home.fingerprint = identity.context, identity.fingerprint
    async with appliance:
        yield home
    service.close()
    await registry.close()


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    async with home_in(tmp_path / "appliance") as made:
        yield made


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing_routes, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(pairing, "SHORTEST_RETRY_S", 0.1)
    monkeypatch.setattr(pairing, "LOST_RETRY_S", 0.2)


@pytest.fixture
def wishes(tmp_path: Path) -> Wishes:
    return Wishes(PIN, tmp_path / "pin.json", pair_wait_s=30)


async def test_from_nothing_to_an_answer(home: Home, wishes: Wishes) -> None:
    assert await home.answered(wishes)
    memory = load_memory(wishes.memory_file)
    assert memory.appliance_id == ID
    assert memory.name == "Hotpin Test"
    assert memory.address == f"{home.appliance.url}/"
    assert home.registry.authenticate(memory.token) is not None
    assert home.said == [f"Found Hotpin Test at {home.appliance.url}/.", "Pairing.", "Paired with Hotpin Test."]


async def test_the_second_time_nothing_is_looked_for(home: Home, wishes: Wishes) -> None:
    assert await home.answered(wishes)
    home.said.clear()
    assert await home.answered(wishes)
    assert home.browsed == [""]
    assert home.said == []


async def test_an_appliance_that_moved_is_found_again_and_knows_the_pin(home: Home, wishes: Wishes) -> None:
    assert await home.answered(wishes)
    memory = load_memory(wishes.memory_file)
    save_memory(wishes.memory_file, replace(memory, address="http://127.0.0.1:9/"))
    assert await home.answered(wishes)
    assert home.browsed == ["", ID]
    assert load_memory(wishes.memory_file) == memory


@pytest.fixture
async def silent_address() -> AsyncIterator[str]:
    """Somebody who takes connections and says nothing, as an address that packets get lost on."""
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"http://{host}:{port}/"
    server.close()


async def test_a_silent_address_does_not_hold_the_pin_up(tmp_path: Path, wishes: Wishes, silent_address: str) -> None:
    async with home_in(tmp_path / "appliance", host="127.0.0.2") as home:
        assert await home.answered(wishes)
        memory = load_memory(wishes.memory_file)
        save_memory(wishes.memory_file, replace(memory, address=silent_address))
        began = time.monotonic()
        assert await home.answered(wishes)
        assert time.monotonic() - began < 8, "a connection is waited for for ten seconds"
        assert load_memory(wishes.memory_file) == memory
        assert home.said[-2:] == [f"{silent_address} does not answer. Looking for it again.",
                                  f"Found Hotpin Test at {home.appliance.url}/."]


async def test_the_search_may_fail_while_the_address_is_only_slow(home: Home, wishes: Wishes,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    assert await home.answered(wishes)
    monkeypatch.setattr("hotpind.pin.home.HEAD_START_S", 0.0)
    memory = load_memory(wishes.memory_file)
    save_memory(wishes.memory_file, replace(memory, appliance_id="not announced"))
    assert await home.answered(wishes)
    assert home.browsed[-1] == "not announced"


async def test_reaching_can_be_given_up(home: Home, wishes: Wishes, silent_address: str) -> None:
    save_memory(wishes.memory_file, Memory(address=silent_address, appliance_id="x"))
    before = asyncio.all_tasks()
    attempt = asyncio.create_task(home.answered(wishes))
    await asyncio.sleep(0.3)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    await until(lambda: not [task for task in asyncio.all_tasks() - before if "address" in task.get_name()], 2)


async def test_a_stranger_at_the_old_address_is_not_paired_with(home: Home, wishes: Wishes) -> None:
    save_memory(wishes.memory_file, Memory(address=home.appliance.url, appliance_id="another-one", token="old"))
    with pytest.raises(PinOfflineError, match="another-one is not here"):
        await home.answered(wishes)
    assert home.registry.devices() == ()


async def test_a_revoked_pin_pairs_anew_when_it_may(home: Home, wishes: Wishes) -> None:
    assert await home.answered(wishes)
    first = load_memory(wishes.memory_file).token
    await home.registry.revoke(PIN)
    home.service.open_window()
    assert await home.answered(wishes)
    assert load_memory(wishes.memory_file).token != first


async def test_a_person_lets_the_pin_in(home: Home, wishes: Wishes) -> None:
    home.service.close_window()
    attempt = asyncio.create_task(home.answered(wishes))
    await until(lambda: bool(home.service.pending()))
    home.service.approve(PIN)
    assert await asyncio.wait_for(attempt, 30)
    assert home.said[2] == ("The appliance waits for a person to let pin-of-the-test in: run "
                            "`hotpinctl devices approve pin-of-the-test` on it.")


async def test_a_person_turns_the_pin_away(home: Home, wishes: Wishes) -> None:
    home.service.close_window()
    attempt = asyncio.create_task(home.answered(wishes))
    await until(lambda: bool(home.service.pending()))
    home.service.deny(PIN)
    with pytest.raises(PinRefusedError, match="turned away"):
        await asyncio.wait_for(attempt, 30)


async def test_nobody_lets_the_pin_in(home: Home, wishes: Wishes) -> None:
    home.service.close_window()
    began = time.monotonic()
    with pytest.raises(PinRefusedError, match="Nobody let pin-of-the-test in within 1 s"):
        await home.answered(replace(wishes, pair_wait_s=1))
    assert time.monotonic() - began < 8


async def test_a_given_address_and_token(home: Home, wishes: Wishes) -> None:
    home.service.open_window()
    token = (await pairing.pair(address(home), PIN, wait_s=5)).token
    assert await home.answered(replace(wishes, url=home.appliance.url, token=token))
    assert home.browsed == []
    assert not wishes.memory_file.exists(), "a token given for one run is not kept"
    with pytest.raises(PinRefusedError, match="401"):
        await home.answered(replace(wishes, url=home.appliance.url, token="wrong"))


async def test_no_pairing_when_it_is_not_wanted(home: Home, wishes: Wishes) -> None:
    with pytest.raises(PinRefusedError, match="401"):
        await home.answered(replace(wishes, pair_wait_s=0))
    assert home.service.is_open


async def test_an_open_appliance_needs_no_pairing(home: Home, wishes: Wishes) -> None:
    home.appliance.knows = None
    assert await home.answered(replace(wishes, url=home.appliance.url))
    assert home.registry.devices() == ()


async def test_an_answer_that_was_lost_is_given_again(home: Home, wishes: Wishes, monkeypatch: pytest.MonkeyPatch
                                                      ) -> None:
    """The window closes with the first grant, so losing that answer must not lock the pin out."""
    lost = 0
    ask = pairing._ask

    async def lossy(*arguments: object) -> object:
        nonlocal lost
        answer = await ask(*arguments)  # type: ignore[arg-type]  # passed on as they came
        if lost < 2:
            lost += 1
            raise TimeoutError
        return answer

    monkeypatch.setattr(pairing, "_ask", lossy)
    assert await home.answered(wishes)
    assert lost == 2


async def test_encrypted_and_pinned(tmp_path: Path, wishes: Wishes) -> None:
    async with home_in(tmp_path / "appliance", tls=True) as home:
        assert await home.answered(wishes)
        assert load_memory(wishes.memory_file).address.startswith("https://127.0.0.1:")
        assert load_memory(wishes.memory_file).fingerprint == home.fingerprint
        other = replace(wishes, url=home.appliance.url, fingerprint="0" * 64)
        with pytest.raises(PinOfflineError, match=r"[Ff]ingerprint"):
            await home.answered(other)
        with pytest.raises(PinError, match="64 hexadecimal digits"):
            await home.answered(replace(other, fingerprint="xyz"))


async def test_a_false_certificate_is_not_talked_to_even_if_it_is_announced(tmp_path: Path, wishes: Wishes) -> None:
    async with home_in(tmp_path / "appliance", tls=True) as home:
        save_memory(wishes.memory_file, Memory(appliance_id=ID, token="secret", fingerprint="0" * 64))
        with pytest.raises(PinOfflineError, match=r"[Ff]ingerprint"):
            await home.answered(wishes)
        assert home.appliance.hellos == []


async def test_a_pin_that_knows_a_certificate_never_talks_in_the_open(home: Home, wishes: Wishes) -> None:
    """Neither at the remembered address, nor at an announced or a given one, nor to pair."""
    secret = Memory(home.appliance.url, ID, "Hotpin Test", token="secret", fingerprint="ab" * 32)
    for memory, url in ((secret, ""), (replace(secret, address=""), ""), (secret, home.appliance.url),
                        (replace(secret, token=""), ""), (replace(secret, token=""), home.appliance.url)):
        save_memory(wishes.memory_file, memory)
        with pytest.raises(PinOfflineError, match="encrypted"):
            await home.answered(replace(wishes, url=url))
        assert load_memory(wishes.memory_file) == memory
    assert home.asked == []
    home.appliance.knows = lambda token: token == "given"
    assert await home.answered(replace(wishes, url=home.appliance.url, token="given")), "a person named both"


async def test_an_announcement_without_its_fingerprint_does_not_lead_into_the_open(
        tmp_path: Path, wishes: Wishes) -> None:
    async with home_in(tmp_path / "appliance", tls=True) as home:
        assert await home.answered(wishes)
        memory = load_memory(wishes.memory_file)
        home.fingerprint = ""
        for address in ("", f"http://127.0.0.1:{home.appliance.port}/"):
            save_memory(wishes.memory_file, replace(memory, address=address))
            assert await home.answered(wishes)
            assert load_memory(wishes.memory_file) == memory
        await home.registry.revoke(PIN)
        home.service.open_window()
        assert await home.answered(wishes), "it pairs again, with the certificate that it knows"
        assert load_memory(wishes.memory_file).fingerprint == memory.fingerprint


async def test_it_goes_on_encrypted_after_pairing_in_the_open(tmp_path: Path, wishes: Wishes) -> None:
    async with home_in(tmp_path / "plain") as plain, home_in(tmp_path / "tls", tls=True) as encrypted:
        encrypted.appliance.knows = lambda token: plain.registry.authenticate(token) is not None
        plain.facts = replace(plain.facts, tls_port=encrypted.appliance.port, fingerprint=encrypted.fingerprint)
        assert await plain.answered(wishes)
        assert len(encrypted.appliance.hellos) == 1
        assert plain.appliance.hellos == []


async def test_an_appliance_that_cannot_pair(appliance: Appliance, wishes: Wishes) -> None:
    appliance.knows = lambda _: False
    with pytest.raises(PinRefusedError, match="does not pair"):
        await reach(replace(wishes, url=appliance.url))


async def test_nobody_answers_the_pairing(wishes: Wishes) -> None:
    with pytest.raises(PinOfflineError, match="could not be asked to pair"):
        await pairing.pair(URL("http://127.0.0.1:9/"), PIN, wait_s=0.5)


def address(home: Home) -> URL:
    return URL(home.appliance.url)
