"""How often an address may ask: token buckets in a table of bounded size, pure (time is passed in)."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

_INTERFACE_BITS = 64


def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 one.

    A single machine can take any of the 2^64 addresses of its network. Other text is returned as it is.
    """
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    scope = f"%{parsed.scope_id}" if parsed.scope_id else ""
    return f"{ipaddress.IPv6Address(int(parsed) >> _INTERFACE_BITS << _INTERFACE_BITS)}/64{scope}"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many at once, and so many per second after that."""

    burst: float
    per_second: float


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float

    def take(self, rate: Rate, now: float) -> float:
        """Take one; return 0.0, or the seconds until there is one."""
        self.level = min(rate.burst, self.level + max(0.0, now - self.at) * rate.per_second)
        self.at = now
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) / rate.per_second


class RateLimiter:
    """A bucket for each address (of IPv6, for each /64) and one for all together.

    The table forgets the address that asked longest ago when it is full; whoever cycles through addresses to
    exploit that still meets the bucket for all.
    """

    def __init__(self, each: Rate, together: Rate, *, addresses: int = 1024) -> None:
        self._each = each
        self._together = together
        self._most = addresses
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._all = _Bucket(together.burst, 0.0)

    def take(self, address: str, now: float) -> float:
        """Count one request from ``address`` at ``now`` (seconds); return 0.0, or how long it has to wait.

        A request that has to wait takes nothing from the bucket for all, so one address cannot empty it.
        """
        network = network_of(address)
        bucket = self._buckets.pop(network, None) or _Bucket(self._each.burst, now)
        self._buckets[network] = bucket
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket.take(self._each, now) or self._all.take(self._together, now)

    def __len__(self) -> int:
        return len(self._buckets)
