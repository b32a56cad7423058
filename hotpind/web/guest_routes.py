"""Devices that live for one command: `hotpinctl ask` and `simulate` on the appliance itself need no pairing.

``POST /api/v1/guests`` ``{"device_id"}`` answers ``{"device_id", "token", "url", "fp"}``;
``DELETE /api/v1/guests/{id}`` ends it. Both are the administrator's. Guests live in memory: they are in no list of
devices, do not count as the first one, and are gone when the daemon ends.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from aiohttp import web

from hotpind.devices.device import check_id
from hotpind.web.auth import Gatekeeper
from hotpind.web.replies import read_json, reply

MOST_GUESTS = 256
"""Beyond it the oldest loses its token: a command that was killed cannot take its leave."""


def add_routes(app: web.Application, gatekeeper: Gatekeeper, url: Callable[[], str], *,
               fingerprint: Callable[[], str] = str, ended: Callable[[str], None] = lambda _: None) -> None:
    """Serve the two routes.

    ``url`` gives the address at which a guest on this machine connects, ``fingerprint`` that of the certificate it
    finds there (empty without TLS); ``ended`` is told a guest's id when its token is withdrawn, so that its
    conversation can be forgotten.
    """
    guests = _Guests(gatekeeper, url, fingerprint, ended)
    app.router.add_post("/api/v1/guests", gatekeeper.guarded(guests.post))
    app.router.add_delete("/api/v1/guests/{id}", gatekeeper.guarded(guests.delete))


class _Guests:
    def __init__(self, gatekeeper: Gatekeeper, url: Callable[[], str], fingerprint: Callable[[], str],
                 ended: Callable[[str], None]) -> None:
        self._gatekeeper = gatekeeper
        self._url = url
        self._fingerprint = fingerprint
        self._ended = ended
        self._ids: OrderedDict[str, None] = OrderedDict()

    async def post(self, request: web.Request) -> web.Response:
        device_id = check_id((await read_json(request)).get("device_id"))
        token = self._gatekeeper.issue_temporary(device_id)
        self._ids[device_id] = None
        self._ids.move_to_end(device_id)
        if len(self._ids) > MOST_GUESTS:
            self._end(next(iter(self._ids)))
        return reply({"device_id": device_id, "token": token, "url": self._url(), "fp": self._fingerprint()})

    async def delete(self, request: web.Request) -> web.Response:
        device_id = request.match_info["id"]
        # Only tokens that were issued here: the self-test's is not a guest's.
        if device_id in self._ids:
            self._end(device_id)
        return reply({"device_id": device_id})

    def _end(self, device_id: str) -> None:
        del self._ids[device_id]
        self._gatekeeper.withdraw_temporary(device_id)
        self._ended(device_id)
