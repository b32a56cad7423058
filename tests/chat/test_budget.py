"""Tokens per minute."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.chat.budget import TokenBudget, duration, economise, estimate, picture_tokens, without_oldest
from hotpind.chat.messages import ChatRequest, Message, Picture

SYSTEM = Message("system", "x" * 350)
QUESTION = Message("user", "y" * 350)
VGA = Picture(b"", 640, 480)


def history(turns: int) -> list[Message]:
    return [message for index in range(turns)
            for message in (Message("user", f"q{index} " + "z" * 346), Message("assistant", f"a{index} " + "z" * 346))]


@pytest.mark.parametrize(("text", "seconds"), [
    ("7.66s", 7.66), ("2m59.56s", 179.56), ("120ms", 0.12), ("1h2m3s", 3723), ("1m0s", 60), ("0s", 0), ("45m", 2700),
    ("", None), ("soon", None), ("s", None), ("1.2.3s", None)])
def test_durations(text: str, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


def test_before_anything_is_known_nothing_is_saved() -> None:
    assert TokenBudget().available(0) == math.inf


def test_what_is_left_grows_back() -> None:
    budget = TokenBudget()
    budget.update({"x-ratelimit-limit-tokens": "8000", "x-ratelimit-remaining-tokens": "2000",
                   "x-ratelimit-reset-tokens": "45s"}, 100)
    assert budget.available(100) == 2000
    assert budget.available(115) == pytest.approx(4000)
    assert budget.available(1000) == 8000
    assert budget.available(50) == 2000, "a clock that goes back gives nothing"


def test_without_a_time_the_limit_is_per_minute() -> None:
    budget = TokenBudget()
    budget.update({"x-ratelimit-limit-tokens": "6000", "x-ratelimit-remaining-tokens": "0"}, 0)
    assert budget.available(30) == pytest.approx(3000)


@pytest.mark.parametrize("headers", [
    {}, {"x-ratelimit-remaining-tokens": "5"}, {"x-ratelimit-limit-tokens": "x", "x-ratelimit-remaining-tokens": "5"},
    {"x-ratelimit-limit-tokens": "nan", "x-ratelimit-remaining-tokens": "5"},
    {"x-ratelimit-limit-tokens": "0", "x-ratelimit-remaining-tokens": "0"},
    {"x-ratelimit-limit-tokens": "inf", "x-ratelimit-remaining-tokens": "inf"}])
def test_headers_without_numbers_change_nothing(headers: dict[str, str]) -> None:
    budget = TokenBudget()
    budget.update(headers, 0)
    assert budget.available(0) == math.inf


@given(st.dictionaries(st.sampled_from(["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens",
                                        "x-ratelimit-reset-tokens"]), st.text(max_size=10) | st.floats().map(str)),
       st.floats(0, 1e6))
def test_any_headers_are_survived(headers: dict[str, str], later: float) -> None:
    budget = TokenBudget()
    budget.update(headers, 0)
    assert budget.available(later) >= 0


def test_what_is_sent_is_spent_before_the_service_says_so() -> None:
    budget = TokenBudget()
    budget.spend(5000, 0)
    assert budget.available(0) == math.inf, "nothing is known yet"
    budget.update({"x-ratelimit-limit-tokens": "8000", "x-ratelimit-remaining-tokens": "6000",
                   "x-ratelimit-reset-tokens": "20s"}, 10)
    budget.spend(4000, 10)
    assert budget.available(10) == 2000
    budget.spend(4000, 11)
    assert budget.available(11) == 0
    assert budget.available(12) == 100


def test_a_picture_costs_by_its_pixels() -> None:
    assert picture_tokens(VGA) == 392
    assert picture_tokens(VGA, 320) == 98
    assert picture_tokens(VGA, 2000) == 392
    assert estimate((Message("user", "", (VGA,)),)) > estimate((Message("user", "", (VGA,)),), side=320)


def test_the_oldest_turn_goes_with_its_answer() -> None:
    messages = (SYSTEM, *history(2), QUESTION)
    shorter = without_oldest(messages)
    assert shorter == (SYSTEM, *history(2)[2:], QUESTION)
    assert shorter is not None
    shortest = without_oldest(shorter)
    assert shortest == (SYSTEM, QUESTION)
    assert shortest is not None
    assert without_oldest(shortest) is None
    assert without_oldest((QUESTION,)) is None
    assert without_oldest(()) is None


def test_two_questions_in_a_row_go_one_by_one() -> None:
    first, second = Message("user", "1"), Message("user", "2")
    assert without_oldest((SYSTEM, first, second, QUESTION)) == (SYSTEM, second, QUESTION)


def test_with_room_nothing_is_saved() -> None:
    request = ChatRequest((SYSTEM, *history(10), QUESTION))
    assert economise(request, math.inf, answer=300) == (request, 0)
    assert economise(request, 8000, answer=300) == (request, 0)


def test_history_goes_before_pictures_shrink() -> None:
    question = Message("user", "what is this?", (Picture(b"", 1568, 1176),))
    request = ChatRequest((SYSTEM, *history(10), question), "device", "turn")
    for available in (4000, 3200, 2900):
        fitted, side = economise(request, available, answer=300)
        assert side == 0
        assert len(fitted.messages) < len(request.messages)
        assert estimate(fitted.messages) <= available - 300
        assert fitted.messages[0] == SYSTEM
        assert fitted.messages[-1] == question
        assert (fitted.device, fitted.turn) == ("device", "turn")
    fitted, side = economise(request, 1500, answer=300)
    assert fitted.messages == (SYSTEM, question)
    assert side in (1024, 768)
    assert estimate(fitted.messages, side=side) <= 1200


def test_what_cannot_fit_is_sent_at_its_smallest() -> None:
    question = Message("user", "what is this?", (VGA,))
    for last, side in ((question, 384), (QUESTION, 0)):
        request = ChatRequest((SYSTEM, *history(3), last))
        assert economise(request, 0, answer=300) == (ChatRequest((SYSTEM, last)), side)
