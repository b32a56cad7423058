from __future__ import annotations

import random
import statistics

from hypothesis import given
from hypothesis import strategies as st

from hotpind.bench.spread import spread

TIMES = st.lists(st.floats(0, 100), min_size=1, max_size=300)


@given(TIMES)
def test_the_percentiles_cover_what_they_say(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.count == len(values)
    assert found.p50 == statistics.median(values)
    assert found.most == max(values)
    for share, value in ((0.95, found.p95), (0.99, found.p99)):
        assert value in values
        assert sum(each <= value for each in values) >= share * len(values)
        assert sum(each < value for each in values) < share * len(values)


def test_two_hundred_turns() -> None:
    values = [number / 100 for number in range(1, 201)]
    random.Random(4).shuffle(values)
    found = spread(values)
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.most) == (1.005, 1.9, 1.98, 2.0)
    assert found.as_json() == {"count": 200, "p50": 1.005, "p95": 1.9, "p99": 1.98, "most": 2.0}


def test_nothing_measured_is_not_zero() -> None:
    assert spread([]) is None
