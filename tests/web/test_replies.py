"""What is logged about requests that failed."""

from __future__ import annotations

import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from hotpind.errors import StateError
from hotpind.web.replies import errors_middleware


@pytest.mark.parametrize("error", [StateError("the disk is full"), ZeroDivisionError()])
async def test_a_path_writes_no_lines_into_the_log(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    async def fail(_: web.Request) -> web.StreamResponse:
        raise error

    app = web.Application(middlewares=[errors_middleware])
    app.router.add_get("/things/{name}", fail)
    path = "/things/x%0A2026-01-01%20ERROR%20forged%1B%5B2J"
    async with TestClient(TestServer(app)) as client:
        with caplog.at_level(logging.ERROR):
            async with client.get(URL(path + "?token=secret" + "x" * 500, encoded=True)) as response:
                assert response.status >= 500
    (line,) = [record.getMessage() for record in caplog.records if record.name == "hotpind.web.replies"]
    assert line.isprintable()
    assert path in line
    assert "secret" not in line
    assert len(line) < 300
