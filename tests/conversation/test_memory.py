"""What is remembered of conversations, and what is not."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hotpind.chat.messages import Picture
from hotpind.conversation.memory import MOST_CONVERSATIONS, MOST_PICTURES, Conversation, Memory

PICTURE = Picture(b"jpeg", 640, 480)


def test_the_request_holds_instructions_history_and_question_in_order() -> None:
    conversation = Conversation(turns=10)
    conversation.add("q1", "a1", now=1.0)
    messages = conversation.messages("be kind", "q2", (PICTURE,))
    assert [(message.role, message.text) for message in messages] == [
        ("system", "be kind"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")]
    assert messages[-1].pictures == (PICTURE,)


@pytest.mark.parametrize(("turns", "least"), [(0, 0), (1, 1), (2, 2), (3, 2), (10, 6), (100, 60)])
def test_the_oldest_turns_are_forgotten_several_at_a_time(turns: int, least: int) -> None:
    conversation = Conversation(turns=turns)
    kept, begun = [], []
    for number in range(3 * turns + 1):
        conversation.add(f"q{number}", f"a{number}", now=1.0)
        kept.append(len(conversation.exchanges))
        begun += [each.question for each in conversation.exchanges][:1]
    assert (max(kept), min(kept[turns:])) == (turns, least)
    assert [each.question for each in conversation.exchanges] == [
        f"q{number}" for number in range(3 * turns + 1 - len(conversation.exchanges), 3 * turns + 1)]
    changes = sum(earlier != later for earlier, later in pairwise(begun))
    assert changes <= (3 * turns + 1) / max(1, turns - least), "a beginning that was read ahead lasts for several turns"


def test_fewer_turns_are_kept_when_the_settings_say_so() -> None:
    memory = Memory(turns=10)
    for number in range(10):
        memory.of("a").add(f"q{number}", "a", now=1.0)
    memory.keep_turns(2)
    memory.of("a").add("last", "a", now=1.0)
    assert [each.question for each in memory.of("a").exchanges] == ["q9", "last"]


def test_an_answer_of_which_nothing_was_heard_is_not_remembered() -> None:
    conversation = Conversation(turns=3)
    conversation.add("q", "", now=1.0)
    assert not conversation.exchanges


def test_a_picture_belongs_to_one_question_and_expires() -> None:
    conversation = Conversation(turns=3)
    conversation.keep_picture(PICTURE, until=300.0)
    assert conversation.pictures(299.0) == (PICTURE,)
    assert conversation.take_pictures(299.0) == (PICTURE,)
    assert conversation.take_pictures(299.0) == ()
    conversation.keep_picture(PICTURE, until=300.0)
    assert conversation.pictures(300.0) == ()


def test_several_pictures_come_with_one_question_and_the_oldest_gives_way() -> None:
    conversation = Conversation(turns=3)
    shots = [Picture(f"jpeg {number}".encode(), 640, 480) for number in range(MOST_PICTURES + 2)]
    for number, shot in enumerate(shots):
        conversation.keep_picture(shot, until=300.0 + number)
    assert conversation.pictures(10.0) == tuple(shots[2:])
    assert conversation.pictures(303.0) == tuple(shots[4:]), "each has its own time"
    taken = conversation.take_pictures(303.0)
    assert [message.pictures for message in conversation.messages("", "q", taken)][-1] == tuple(shots[4:])
    conversation.add("q", "a", 303.0, taken)
    assert [message.pictures for message in conversation.messages("", "next")] == [(), (shots[-1],), (), ()]
    conversation.forget_old_pictures(305.5)
    assert conversation.messages("", "next")[1].pictures == (shots[-1],)
    conversation.forget_old_pictures(306.0)
    assert conversation.messages("", "next")[1].pictures == ()


def test_people_can_ask_on_about_what_they_have_shown_last() -> None:
    conversation = Conversation(turns=10)
    for number in range(3):
        conversation.keep_picture(PICTURE, until=300.0 + number)
        conversation.add(f"q{number}", "a", 10.0, conversation.take_pictures(10.0))

    def shown(*pictures: Picture) -> list[str]:
        return [message.text for message in conversation.messages("", "next", pictures) if message.pictures]

    assert shown(PICTURE) == ["next"]
    assert shown() == ["q2"]
    conversation.forget_old_pictures(301.0)
    assert shown() == ["q2"]
    for number in range(3):
        conversation.add(f"more {number}", "a", 10.0)
    assert shown() == ["q2"]
    conversation.add("enough", "a", 10.0)
    assert shown() == []


def test_a_picture_is_not_asked_about_after_its_time() -> None:
    conversation = Conversation(turns=10)
    conversation.keep_picture(PICTURE, until=300.0)
    conversation.add("q", "a", 10.0, conversation.take_pictures(10.0))
    conversation.forget_old_pictures(300.0)
    assert not [message for message in conversation.messages("", "next") if message.pictures]


def test_reset_and_a_long_silence_begin_anew() -> None:
    conversation = Conversation(turns=3)
    conversation.add("q", "a", now=10.0)
    conversation.forget_if_idle(1000.0, idle_s=1800)
    assert conversation.exchanges
    conversation.forget_if_idle(2000.0, idle_s=1800)
    assert not conversation.exchanges
    conversation.add("q", "a", now=10.0)
    conversation.keep_picture(PICTURE, until=300.0)
    conversation.reset()
    assert not conversation.exchanges
    assert conversation.pictures(0.0) == ()


def test_conversations_are_kept_apart_and_bounded() -> None:
    memory = Memory(turns=2)
    memory.of("a").add("q", "a", now=0.0)
    assert not memory.of("b").exchanges
    for number in range(MOST_CONVERSATIONS * 2):
        memory.of(f"device {number}")
    assert len(memory) == MOST_CONVERSATIONS
    assert not memory.of("a").exchanges
