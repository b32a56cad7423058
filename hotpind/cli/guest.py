"""How `hotpinctl ask` and `simulate` reach the appliance: as its guest when it runs here, else as any pin."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from urllib.parse import quote

from yarl import URL

from hotpind.cli.control import call
from hotpind.config import Config
from hotpind.errors import ControlDenied, OperatorError
from hotpind.pin.client import Pin, base_url
from hotpind.pin.home import Wishes, reach

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Guest:
    """A pass that the daemon on this machine gave for one command."""

    url: str
    token: str
    fingerprint: str = ""


@contextlib.asynccontextmanager
async def guest(wishes: Wishes, config: Config) -> AsyncIterator[Wishes]:
    """Fill in address and token when the appliance runs on this machine and lets its administrator in.

    Only when neither was given, or the address given is this machine's own. Elsewhere the wishes stay as they are.
    Raises `ControlDenied` for a user who may not ask the appliance here: pairing with it like a stranger would use
    up the place of a pin.
    """
    granted = None if wishes.token else await _ask_in(wishes, config)
    try:
        yield wishes if granted is None else replace(
            wishes, url=granted.url, token=granted.token, fingerprint=wishes.fingerprint or granted.fingerprint)
    finally:
        if granted is not None:
            with contextlib.suppress(OperatorError):
                await call("DELETE", f"/api/v1/guests/{quote(wishes.session_id, safe='')}", config=config)


@contextlib.asynccontextmanager
async def connected_pin(wishes: Wishes, config: Config, say: Callable[[str], None]) -> AsyncIterator[Pin]:
    """Reach the appliance, and leave it at the end. Raises what `guest` and `hotpind.pin.home.reach` raise."""
    async with guest(wishes, config) as filled:
        pin = await reach(filled, say=say)
        try:
            yield pin
        finally:
            await pin.close()


async def _ask_in(wishes: Wishes, config: Config) -> Guest | None:
    given = base_url(wishes.url) if wishes.url else None
    if given is not None and given.host not in _LOOPBACK:
        return None
    try:
        answer = await call("POST", "/api/v1/guests", {"device_id": wishes.session_id}, config=config)
    except ControlDenied as error:
        raise ControlDenied(f"{error} (or name another appliance with --url)") from None
    except OperatorError:
        return None
    url, token = str(answer.get("url", "")), str(answer.get("token", ""))
    # Another appliance may listen on this machine's loopback address, such as one in a container.
    if not url or not token or (given is not None and URL(url).port != given.port):
        return None
    return Guest(url, token, str(answer.get("fp", "")))
