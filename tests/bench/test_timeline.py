from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.bench.timeline import LEFT, MOST_TICKS, RIGHT, WIDTH, Bar, Timeline, svg, ticks

NS = "{http://www.w3.org/2000/svg}"
LONG = st.floats(0.01, 60)


def drawn(*bars: Bar, title: str = "A turn") -> ET.Element:
    return ET.fromstring(svg(Timeline(title, "a machine", "p50", bars)))


def corners(root: ET.Element) -> list[list[float]]:
    """The horizontal coordinates of each bar's corners."""
    return [[float(point.split(",")[0]) for point in polygon.attrib["points"].split()]
            for polygon in root.iter(f"{NS}polygon")]


def test_bars_are_drawn_to_scale() -> None:
    first, second = corners(drawn(Bar("a", 0.0, 0.25, "#000"), Bar("b", 0.25, 1.0, "#000")))
    width = WIDTH - LEFT - RIGHT
    assert (min(first), max(first)) == pytest.approx((LEFT, LEFT + width / 4), abs=0.1)
    assert (min(second), max(second)) == pytest.approx((LEFT + width / 4, LEFT + width), abs=0.1)


def test_a_slow_turn_fits_in() -> None:
    root = drawn(Bar("a", 0.0, 0.25, "#000", late=2.0))
    ends = [float(line.attrib["x2"]) for line in root.iter(f"{NS}line")]
    assert max(ends) == pytest.approx(WIDTH - RIGHT, abs=0.1)
    assert max(corners(root)[0]) == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / 8, abs=0.1)


def test_what_takes_no_time_can_still_be_seen() -> None:
    thin, _ = corners(drawn(Bar("a", 0.5, 0.5, "#000"), Bar("b", 0.0, 1.0, "#000")))
    assert max(thin) - min(thin) >= 1


def test_words_are_not_markup() -> None:
    root = drawn(Bar("<b>&", 0, 1, "#000", note="\"1\" < 2"), title="Tom & Ann <3")
    words = [element.text for element in root.iter(f"{NS}text")]
    assert "<b>&" in words
    assert "\"1\" < 2" in words
    assert root.findtext(f"{NS}title") == "Tom & Ann <3"


@given(LONG, LONG)
def test_ticks_are_round_and_within(before: float, after: float) -> None:
    found = ticks(-before, after)
    assert 0.0 in found
    assert len(found) <= MOST_TICKS + 1 or before + after > 90
    assert found[0] >= -before - 1e-6
    assert found[-1] <= after + 1e-6
    steps = {round(second - first, 6) for first, second in pairwise(found)}
    assert len(steps) <= 1


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(0, 30)), min_size=1, max_size=9))
def test_nothing_leaves_the_drawing(bars: list[tuple[float, float]]) -> None:
    root = drawn(*(Bar("a", start, start + length, "#000") for start, length in bars))
    for bar in corners(root):
        assert min(bar) >= LEFT - 0.1
        assert max(bar) <= WIDTH - RIGHT + 2
