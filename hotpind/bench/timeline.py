"""Draws a turn's timeline as SVG: what happens when, from the end of the question to the first sound. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 960
LEFT, RIGHT, TOP = 190, 170, 92
ROW, BAR = 38, 22
FONT = "font-family='system-ui, sans-serif'"
INK, FAINT, GRID = "#1b1b1f", "#5d5d66", "#dcdce2"
STEPS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
MOST_TICKS = 9


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that takes from ``start`` to ``end``, in seconds since the end of speech."""

    label: str
    start: float
    end: float
    colour: str
    note: str = ""
    """Shown at the right."""
    late: float | None = None
    """When it ends in a slow turn (p95)."""
    open_start: bool = False
    """It began before the drawing does."""
    open_end: bool = False


@dataclass(frozen=True, slots=True)
class Timeline:
    """What to draw."""

    title: str
    subtitle: str
    notes_head: str
    bars: Sequence[Bar]
    footer: str = ""


def ticks(start: float, end: float) -> list[float]:
    """Return round values between ``start`` and ``end`` in seconds, at most `MOST_TICKS`, zero among them if inside."""
    step = next((step for step in STEPS_S if (end - start) / step <= MOST_TICKS), STEPS_S[-1])
    first = math.ceil(round(start / step, 6))
    return [round(number * step, 6) for number in range(first, math.floor(round(end / step, 6)) + 1)]


def svg(timeline: Timeline) -> str:
    """Return the drawing as an SVG document."""
    bars = timeline.bars
    start = min(bar.start for bar in bars)
    end = max(max(bar.end, bar.late or bar.end) for bar in bars)
    height = TOP + ROW * len(bars) + 70
    bottom = TOP + ROW * len(bars)

    def x(seconds: float) -> float:
        return LEFT + (seconds - start) / max(end - start, 1e-9) * (WIDTH - LEFT - RIGHT)

    parts = [f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' "
             f"viewBox='0 0 {WIDTH} {height}' role='img'>",
             f"<title>{escape(timeline.title)}</title>", f"<rect width='{WIDTH}' height='{height}' fill='#ffffff'/>",
             _text(24, 34, timeline.title, size=19, weight=600), _text(24, 56, timeline.subtitle, colour=FAINT),
             _text(WIDTH - RIGHT + 16, TOP - 12, timeline.notes_head, colour=FAINT, size=12)]
    for tick in ticks(start, end):
        parts.append(_line(x(tick), TOP, x(tick), bottom, GRID if tick else INK, 1 if tick else 1.6))
        parts.append(_text(x(tick), bottom + 18, f"{tick:g}", colour=FAINT, size=12, anchor="middle"))
    for row, bar in enumerate(bars):
        parts += _bar(bar, TOP + row * ROW + ROW / 2, x)
    parts.append(_text(x(0), TOP - 12, "end of speech", size=12, anchor="middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, "seconds after the end of speech", colour=FAINT,
                       size=12, anchor="middle"))
    parts.append(_text(24, height - 12, timeline.footer, colour=FAINT, size=11))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(bar: Bar, middle: float, x: Callable[[float], float]) -> list[str]:
    left, right = x(bar.start), max(x(bar.end), x(bar.start) + 1.5)
    top, bottom = middle - BAR / 2, middle + BAR / 2
    points = [(left + 7 if bar.open_start else left, top)]
    points += [(right - 7, top), (right, middle), (right - 7, bottom)] if bar.open_end \
        else [(right, top), (right, bottom)]
    points += [(left + 7, bottom), (left, middle)] if bar.open_start else [(left, bottom)]
    drawn = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    parts = [_text(LEFT - 14, middle + 5, bar.label, anchor="end"), f"<polygon points='{drawn}' fill='{bar.colour}'/>"]
    if bar.late is not None and bar.late > bar.end:
        late = x(bar.late)
        parts += [_line(right, middle, late, middle, bar.colour, 2), _line(late, middle - 6, late, middle + 6,
                                                                           bar.colour, 2)]
    if bar.note:
        parts.append(_text(WIDTH - RIGHT + 16, middle + 5, bar.note, size=13))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}' "
            f"stroke-width='{width:g}'/>")


def _text(x: float, y: float, words: str, *, size: int = 14, colour: str = INK, weight: int = 400,
          anchor: str = "start") -> str:
    return (f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='{size}' font-weight='{weight}' fill='{colour}' "
            f"text-anchor='{anchor}'>{escape(words)}</text>")
