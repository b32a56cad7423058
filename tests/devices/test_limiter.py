"""Token buckets by address."""

from __future__ import annotations

import pytest

from hotpind.devices.limiter import Rate, RateLimiter, network_of

MANY = Rate(burst=1e9, per_second=1e9)


def test_a_burst_and_then_the_rate() -> None:
    limiter = RateLimiter(Rate(burst=3, per_second=0.5), MANY)
    assert [limiter.take("a", 0) for _ in range(3)] == [0, 0, 0]
    assert limiter.take("a", 0) == pytest.approx(2)
    assert limiter.take("a", 1) == pytest.approx(1)
    assert limiter.take("a", 2) == 0
    assert limiter.take("a", 2) > 0


def test_addresses_do_not_share() -> None:
    limiter = RateLimiter(Rate(burst=1, per_second=1), MANY)
    assert limiter.take("a", 0) == 0
    assert limiter.take("a", 0) > 0
    assert limiter.take("b", 0) == 0


def test_a_network_of_ipv6_counts_as_one() -> None:
    limiter = RateLimiter(Rate(burst=3, per_second=1), MANY)
    assert [limiter.take(f"2001:db8::{n:x}", 0) > 0 for n in range(5)] == [False, False, False, True, True]
    assert limiter.take("2001:db8:0:1::1", 0) == 0
    assert len(limiter) == 2


@pytest.mark.parametrize(("address", "network"), [
    ("198.51.100.20", "198.51.100.20"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("::1", "::/64"),
    ("fe80::1234%wlan0", "fe80::/64%wlan0"), ("local", "local"), ("", "")])
def test_what_counts_as_one_client(address: str, network: str) -> None:
    assert network_of(address) == network


def test_all_together_are_bounded() -> None:
    limiter = RateLimiter(Rate(burst=1, per_second=1), Rate(burst=5, per_second=1))
    taken = [limiter.take(f"address-{n}", 0) for n in range(20)]
    assert taken.count(0) == 5


def test_one_address_cannot_empty_the_bucket_for_all() -> None:
    limiter = RateLimiter(Rate(burst=2, per_second=1), Rate(burst=5, per_second=0.001))
    for _ in range(1000):
        limiter.take("flood", 0)
    assert limiter.take("pin", 0) == 0


def test_the_table_is_bounded() -> None:
    limiter = RateLimiter(Rate(burst=1, per_second=1), MANY, addresses=100)
    for n in range(10_000):
        limiter.take(f"address-{n}", n * 1e-6)
    assert len(limiter) == 100


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    limiter = RateLimiter(Rate(burst=1, per_second=1), MANY)
    assert limiter.take("a", 100) == 0
    assert limiter.take("a", 50) > 0
    assert limiter.take("a", 50.5) > 0
