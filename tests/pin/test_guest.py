"""Commands on the appliance itself come in as guests, over a real control socket, and leave nothing behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector, web

from hotpind.cli.control import call
from hotpind.cli.guest import connected_pin, guest
from hotpind.config import Config
from hotpind.devices.registry import DeviceRegistry
from hotpind.errors import ControlDenied, OperatorError
from hotpind.pin.home import Wishes
from hotpind.web import guest_routes
from hotpind.web.auth import Gatekeeper
from hotpind.web.replies import errors_middleware
from tests.pin.appliance import Appliance


class Box:
    """The appliance's own machine: control socket, gatekeeper, and the device's port."""

    def __init__(self, gatekeeper: Gatekeeper, registry: DeviceRegistry, appliance: Appliance, config: Config) -> None:
        self.gatekeeper = gatekeeper
        self.registry = registry
        self.appliance = appliance
        self.config = config
        self.ended: list[str] = []

    def knows(self, token: str) -> bool:
        return self.gatekeeper._grant(token) is not None


@pytest.fixture
async def box(tmp_path: Path, appliance: Appliance) -> AsyncIterator[Box]:
    config = Config.model_validate({"paths": {"runtime": str(tmp_path / "run")}})
    (tmp_path / "run").mkdir()
    registry = await DeviceRegistry.open(tmp_path / "state")
    gatekeeper = Gatekeeper(registry, mode="paired", admin_secret="the secret of the administrator")
    made = Box(gatekeeper, registry, appliance, config)
    appliance.knows = made.knows
    app = web.Application(middlewares=[errors_middleware])
    guest_routes.add_routes(app, gatekeeper, lambda: appliance.url, ended=made.ended.append)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "run" / "control.sock")).start()
    yield made
    await runner.cleanup()
    await registry.close()


def wishes(tmp_path: Path, url: str = "", token: str = "") -> Wishes:
    return Wishes("hotpinctl", tmp_path / "memory.json", url=url, token=token, pair_wait_s=0)


async def test_a_guest_needs_no_settings_and_is_no_device(box: Box, tmp_path: Path) -> None:
    async with connected_pin(wishes(tmp_path), box.config, lambda _: None) as pin:
        assert (await pin.ask(bytes(4000), realtime=False)).answered
        assert box.registry.devices() == ()
    assert not box.registry.ever_paired
    assert not (tmp_path / "memory.json").exists()
    assert box.ended == ["hotpinctl"]


async def test_the_pass_ends_with_the_command(box: Box, tmp_path: Path) -> None:
    async with guest(wishes(tmp_path), box.config) as filled:
        assert filled.url == box.appliance.url
        assert box.knows(filled.token)
    assert not box.knows(filled.token)


@pytest.mark.parametrize("trouble", [RuntimeError, KeyboardInterrupt])
async def test_it_ends_with_a_failed_command_too(box: Box, tmp_path: Path, trouble: type[BaseException]) -> None:
    token = ""
    with contextlib.suppress(trouble):
        async with guest(wishes(tmp_path), box.config) as filled:
            token = filled.token
            raise trouble
    assert token
    assert not box.knows(token)


async def test_this_machines_own_address_may_be_given(box: Box, tmp_path: Path) -> None:
    async with guest(wishes(tmp_path, url=f"ws://localhost:{box.appliance.port}/ws"), box.config) as filled:
        assert filled.token


@pytest.mark.parametrize("url", ["http://192.0.2.7:8000", "http://127.0.0.1:1"])
async def test_another_address_is_asked_as_a_stranger(box: Box, tmp_path: Path, url: str) -> None:
    async with guest(wishes(tmp_path, url=url), box.config) as filled:
        assert (filled.url, filled.token) == (url, "")


async def test_a_token_that_was_given_is_used(box: Box, tmp_path: Path) -> None:
    async with guest(wishes(tmp_path, token="mine"), box.config) as filled:
        assert (filled.url, filled.token) == ("", "mine")
    assert box.ended == []


async def test_without_a_daemon_here_nothing_changes(tmp_path: Path) -> None:
    config = Config.model_validate({"paths": {"runtime": str(tmp_path / "none")}})
    async with guest(wishes(tmp_path), config) as filled:
        assert filled == wishes(tmp_path)


async def test_guests_are_bounded(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_routes, "MOST_GUESTS", 3)
    tokens = [str((await call("POST", "/api/v1/guests", {"device_id": f"g{number}"}, config=box.config))["token"])
              for number in range(5)]
    assert [box.knows(token) for token in tokens] == [False, False, True, True, True]
    assert box.ended == ["g0", "g1"]


async def test_only_guests_are_sent_away(box: Box) -> None:
    own = box.gatekeeper.issue_temporary("self-test")
    await call("DELETE", "/api/v1/guests/self-test", config=box.config)
    assert box.knows(own)
    with pytest.raises(OperatorError, match="device_id has to be"):
        await call("POST", "/api/v1/guests", {"device_id": "not a device id!"}, config=box.config)


async def test_only_the_administrator_may_let_guests_in(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                        ) -> None:
    monkeypatch.setattr("hotpind.web.auth.peer_uid", lambda _: 12345)
    connector = UnixConnector(str(tmp_path / "run" / "control.sock"))
    async with ClientSession(connector=connector) as http, http.post("http://localhost/api/v1/guests",
                                                                     json={"device_id": "x"}) as response:
        assert response.status == 403
    # Not as a stranger either: that would pair, and use up the place of a pin.
    with pytest.raises(ControlDenied, match="sudo"):
        async with guest(wishes(tmp_path), box.config):
            pass
    async with guest(wishes(tmp_path, url="http://192.0.2.7:8000"), box.config) as filled:
        assert (filled.url, filled.token) == ("http://192.0.2.7:8000", "")
