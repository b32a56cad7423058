"""Listening, and the bounds on connections."""

from __future__ import annotations

import errno
import socket

import aiohttp
import pytest
from aiohttp import web

from hotpind.web.limits import ConnectionGuard, GuardedSite, bind_all
from hotpind.web.replies import address_of, reply

V4, V6 = (socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0, 0, 0))


def test_both_versions_of_ip_get_the_same_free_port() -> None:
    for _ in range(20):
        bound = bind_all([V4, V6])
        assert len({each.getsockname()[1] for each in bound}) == 1
        assert len(bound) == 2
        for each in bound:
            each.close()


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open() -> None:
    assert any(leaves_nothing_open() for _ in range(5)), "somebody else may have taken the port, but not each time"


def leaves_nothing_open() -> bool:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            bind_all([(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, ("127.0.0.1", port))])
        with socket.socket(socket.AF_INET6) as again:
            try:
                again.bind(("::1", port))
            except OSError:
                return False
    return True


def test_a_missing_version_of_ip_is_left_out() -> None:
    (only,) = bind_all([(socket.AF_INET6, ("2001:db8::1", 0, 0, 0)), V4])
    assert only.family == socket.AF_INET
    only.close()


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        bind_all([(socket.AF_INET, ("203.0.113.9", 0))])


async def test_a_site_listens_on_every_address_and_stops() -> None:
    for _ in range(5):
        if await refused_after_its_end():
            return
    raise AssertionError("somebody else may have taken the port, but not each time")


async def refused_after_its_end() -> bool:
    guard = ConnectionGuard()
    app = web.Application(middlewares=[guard.middleware])

    async def who(request: web.Request) -> web.Response:
        return reply({"address": address_of(request)})

    app.router.add_get("/", who)
    runner = web.AppRunner(app)
    await runner.setup()
    site = GuardedSite(runner, guard, "", 0)
    await site.start()
    async with aiohttp.ClientSession() as http:
        for host, address in (("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")):
            async with http.get(f"http://{host}:{site.port}/") as response:
                assert await response.json() == {"address": address}
    await runner.cleanup()
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", site.port)) == errno.ECONNREFUSED
