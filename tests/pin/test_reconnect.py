"""The firmware's rules for coming back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hotpind.pin.reconnect import Reconnect


def test_waits_grow_from_5_to_60_s() -> None:
    plan = Reconnect(lambda: 0.0)
    assert [plan.next_try(100.0) - 100.0 for _ in range(7)] == [5, 10, 20, 40, 60, 60, 60]


def test_a_connection_begins_anew_at_5_s() -> None:
    plan = Reconnect(lambda: 0.0)
    for _ in range(4):
        plan.next_try(0.0)
    plan.connected(100.0, again=False)
    assert plan.next_try(101.0) == 106.0


def test_30_s_of_calm_after_a_reconnect() -> None:
    plan = Reconnect(lambda: 0.0)
    plan.connected(100.0, again=True)
    assert plan.next_try(101.0) == 130.0
    assert plan.next_try(131.0) == 141.0


@given(st.floats(0, 0.999), st.integers(0, 20))
def test_never_sooner_than_5_nor_later_than_60_s(chance: float, failures: int) -> None:
    plan = Reconnect(lambda: chance)
    for _ in range(failures):
        plan.next_try(0.0)
    assert 5.0 <= plan.next_try(50.0) - 50.0 <= 60.0
