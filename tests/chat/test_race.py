"""Who gets the floor."""

from __future__ import annotations

import pytest

from hotpind.chat.race import HEAD_START_S, Standing, head_start, to_start, winner

I, P, S, F = Standing.IDLE, Standing.PENDING, Standing.SPOKE, Standing.FAILED  # noqa: E741  # one letter each


@pytest.mark.parametrize(("standings", "before", "after"), [
    ([P, I], None, None),
    ([S, I], 0, 0),
    ([P, S], None, 1),
    ([F, S], 1, 1),
    ([F, P], None, None),
    ([P, P, S], None, 2),
    ([P, S, S], None, 1),
    ([F, P, S], None, 2),
    ([S, S, S], 0, 0),
    ([F, F, F], None, None),
    ([P, I, S], None, 2),
    ([], None, None),
])
def test_the_floor(standings: list[Standing], before: int | None, after: int | None) -> None:
    assert winner(standings, past_deadline=False) == before
    assert winner(standings, past_deadline=True) == after


@pytest.mark.parametrize(("standings", "normally", "hedging"), [
    ([I, I, I], [0], [0, 1, 2]),
    ([P, I, I], [], [1, 2]),
    ([F, I, I], [1], [1, 2]),
    ([F, P, I], [], [2]),
    ([F, F, I], [2], [2]),
    ([F, F, F], [], []),
    ([S, I], [], [1]),
])
def test_who_is_started(standings: list[Standing], normally: list[int], hedging: list[int]) -> None:
    assert to_start(standings, hedge=False) == normally
    assert to_start(standings, hedge=True) == hedging


def test_the_head_start_is_never_the_whole_deadline() -> None:
    assert head_start(2.5) == 2.5 - HEAD_START_S
    assert head_start(0.4) == pytest.approx(0.2)
