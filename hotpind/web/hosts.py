"""Which pages may talk to the appliance: the Host and Origin headers against DNS rebinding and foreign pages.

A page on a foreign site can make a browser at home connect to the appliance. If it uses a name of its own
that it points at the appliance (DNS rebinding), the Host header carries that name; if it uses the
appliance's address, the Origin header carries the foreign site (WebSockets and POSTs always have one).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from hotpind.web.replies import came_over_unix_socket, refusal

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^\s/@\\:\[\]]+)(?::(?P<port>\d{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


def own_names(appliance_host: str) -> frozenset[str]:
    """Return the names under which this machine is known at home: the appliance's and the machine's own."""
    machine = socket.gethostname().lower().rstrip(".")
    short = machine.split(".")[0]
    return frozenset({"localhost", appliance_host.lower(), machine, short, f"{short}.local"} - {""})


def host_is_allowed(host: str, names: Collection[str]) -> bool:
    """Tell whether a Host header names this appliance: an IP address or one of ``names`` (lower case)."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["name"].lower().rstrip(".")
    return _is_address(name) or name in names


def is_same_origin(origin: str, host: str, scheme: str) -> bool:
    """Tell whether an Origin header names the host (and port) that the request was sent to."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    match = _HOST.fullmatch(host)
    if match is None or parts.scheme not in _DEFAULT_PORTS or parts.hostname is None:
        return False
    expected = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    return (parts.hostname.lower() == match["name"].lower().strip("[]")
            and (port or _DEFAULT_PORTS[parts.scheme]) == expected)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def host_middleware(names: Callable[[], Collection[str]], *, tls_required: bool = False,
                    open_paths: Collection[str] = ("/health",)) -> Middleware:
    """Make the middleware that refuses foreign names and pages, and plain HTTP when TLS is required.

    ``names`` gives the host names that are allowed now, in lower case. ``open_paths`` stay reachable over
    plain HTTP. Requests over the control socket are not looked at: no browser can make one.
    """
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if came_over_unix_socket(request):
            return await handler(request)
        hosts = request.headers.getall("Host", [])
        origins = request.headers.getall("Origin", [])
        if len(hosts) != 1 or len(origins) > 1:
            raise refusal(400, "A request has to carry one Host header and at most one Origin header.")
        if not host_is_allowed(hosts[0], names()):
            raise refusal(421, "The appliance is not known under this name; add it to server.allowed_hosts.")
        if origins and not is_same_origin(origins[0], hosts[0], request.scheme):
            raise refusal(403, "Pages of other sites may not talk to the appliance.")
        if tls_required and not request.secure and request.path not in open_paths:
            raise refusal(426, "The appliance takes encrypted connections only: use its TLS port.",
                          {"Upgrade": "TLS/1.2"})
        return await handler(request)

    return check
