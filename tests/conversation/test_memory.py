"""What is remembered of conversations, and what is not."""

from __future__ import annotations

from hotpind.chat.messages import Picture
from hotpind.conversation.memory import MOST_CONVERSATIONS, Conversation, Memory

PICTURE = Picture(b"jpeg", 640, 480)


def test_the_request_holds_instructions_history_and_question_in_order() -> None:
    conversation = Conversation(turns=10)
    conversation.add("q1", "a1", now=1.0)
    messages = conversation.messages("be kind", "q2", PICTURE)
    assert [(message.role, message.text) for message in messages] == [
        ("system", "be kind"), ("user", "q1"), ("assistant", "a1"), ("user", "q2")]
    assert messages[-1].pictures == (PICTURE,)


def test_the_oldest_turns_are_forgotten() -> None:
    conversation = Conversation(turns=3)
    for number in range(9):
        conversation.add(f"q{number}", f"a{number}", now=1.0)
    assert [each.question for each in conversation.exchanges] == ["q6", "q7", "q8"]


def test_an_answer_of_which_nothing_was_heard_is_not_remembered() -> None:
    conversation = Conversation(turns=3)
    conversation.add("q", "", now=1.0)
    assert not conversation.exchanges


def test_a_picture_belongs_to_one_question_and_expires() -> None:
    conversation = Conversation(turns=3)
    conversation.keep_picture(PICTURE, until=300.0)
    assert conversation.picture(299.0) is PICTURE
    assert conversation.take_picture(299.0) is PICTURE
    assert conversation.take_picture(299.0) is None
    conversation.keep_picture(PICTURE, until=300.0)
    assert conversation.picture(300.0) is None


def test_people_can_ask_on_about_what_they_have_shown_last() -> None:
    conversation = Conversation(turns=10)
    for number in range(3):
        conversation.keep_picture(PICTURE, until=300.0 + number)
        conversation.add(f"q{number}", "a", 10.0, conversation.take_picture(10.0))

    def shown(picture: Picture | None = None) -> list[str]:
        return [message.text for message in conversation.messages("", "next", picture) if message.pictures]

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
    conversation.add("q", "a", 10.0, conversation.take_picture(10.0))
    conversation.forget_old_pictures(300.0)
    assert not [message for message in conversation.messages("", "next", None) if message.pictures]


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
    assert conversation.picture(0.0) is None


def test_conversations_are_kept_apart_and_bounded() -> None:
    memory = Memory(turns=2)
    memory.of("a").add("q", "a", now=0.0)
    assert not memory.of("b").exchanges
    for number in range(MOST_CONVERSATIONS * 2):
        memory.of(f"device {number}")
    assert len(memory) == MOST_CONVERSATIONS
    assert not memory.of("a").exchanges
