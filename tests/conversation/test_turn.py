"""When a turn needs its audio: what decides whose sentence is spoken first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest

from hotpind.chat.messages import ChatRequest, Picture
from hotpind.conversation import turn as turn_module
from hotpind.conversation.memory import Conversation
from hotpind.conversation.prompts import BROKEN_OFF
from hotpind.conversation.turn import (
    DRIPPING_S,
    FIRST_CLAUSE_S,
    FIRST_WORD_PATIENCE_S,
    LENT_S,
    TICK_S,
    Canned,
    Turn,
    TurnRecord,
)
from hotpind.errors import EngineBroke
from hotpind.speech.tts import Synthesizer
from tests.waiting import until

RATE = 1000


class Voice:
    """Speaks a second of silence for every piece, and notes when it was needed."""

    rate = RATE

    def __init__(self) -> None:
        self.due: list[float] = []

    async def speak(self, _: str, due: float) -> AsyncGenerator[bytes, None]:
        self.due.append(due)
        yield bytes(RATE * 2)
        await asyncio.sleep(0.02)


class Ear:
    """A device with so many seconds still to play."""

    ahead = 0.0

    def ahead_s(self) -> float:
        return self.ahead

    def played_bytes(self) -> float:
        return 0.0

    async def audio(self, _: bytes) -> None:
        self.ahead = 2.5

    def __getattr__(self, name: str) -> Any:
        async def nothing(*_: object, **__: object) -> None:
            return None

        return nothing


class Answer:
    """Two sentences, word by word."""

    backend = model = reason = ""
    token_at: float | None = None

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        for word in ("One", " is", " said.", " Two", " is", " said", " too."):
            yield word
            await asyncio.sleep(0.01)

    async def aclose(self) -> None:
        return None


class Brain:
    async def ask(self, _: object) -> Answer:
        return Answer()


async def test_the_first_piece_is_needed_soon_and_a_later_one_when_playback_would_run_dry() -> None:
    voice = Voice()
    turn = Turn(brain=cast(Any, Brain()), voice=cast(Synthesizer, voice), canned=Canned(), ear=cast(Any, Ear()),
                conversation=Conversation(10), record=TurnRecord("1", "kitchen", 100.0), system_prompt="",
                deadline_s=50.0, clock=lambda: 103.0)
    await turn.answer("what?")
    assert voice.due == [100.0 + FIRST_WORD_PATIENCE_S, 103.0 + 2.5]


class Listener(Ear):
    """A device that writes down what it is told, and plays everything at once."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.parts: list[tuple[float, int]] = []
        self.may_show = asyncio.Event()
        self.may_show.set()

    async def thinking(self, transcript: str, *, has_image: bool) -> None:
        await self.may_show.wait()
        self.told.append(f"thinking {transcript}")

    async def speaking(self, response: str, rate: int) -> None:
        self.told.append("speaking")

    async def audio(self, pcm: bytes) -> None:
        self.parts.append((asyncio.get_running_loop().time(), len(pcm)))

    async def end_audio(self) -> None:
        self.told.append("end")

    async def complete(self, record: TurnRecord, response: str) -> None:
        self.told.append(f"complete {response}")


class Script:
    """A brain that says lines, each after so many seconds."""

    backend = model = reason = ""
    token_at: float | None = None

    def __init__(self, *lines: tuple[float, str]) -> None:
        self.lines: Sequence[tuple[float, str]] = lines
        self.asked = asyncio.Event()
        self.request: ChatRequest | None = None

    async def ask(self, request: ChatRequest) -> Script:
        self.request = request
        self.asked.set()
        return self

    async def __aiter__(self) -> AsyncGenerator[str, None]:
        for wait, text in self.lines:
            await asyncio.sleep(wait)
            yield text

    async def aclose(self) -> None:
        return None


def turn_of(brain: Any, voice: Any, ear: Any, conversation: Conversation, **more: Any) -> Turn:
    loop = asyncio.get_running_loop()
    return Turn(brain=brain, voice=cast(Synthesizer, voice), canned=Canned({BROKEN_OFF: bytes(RATE)}), ear=ear,
                conversation=conversation, record=TurnRecord("1", "kitchen", loop.time()), system_prompt="",
                deadline_s=50.0, clock=loop.time, **more)


async def test_the_question_goes_out_while_the_device_is_still_being_told_the_transcript() -> None:
    ear, brain = Listener(), Script((0, "Yes."))
    ear.may_show.clear()
    asking = asyncio.create_task(turn_of(brain, Voice(), ear, Conversation(10)).answer("what?"))
    await asyncio.wait_for(brain.asked.wait(), 2)
    await asyncio.sleep(0.1)
    assert ear.told == []
    ear.may_show.set()
    await asking
    assert ear.told == ["thinking what?", "speaking", "end", "complete Yes."]


@pytest.mark.parametrize(("seconds_per_word", "spoken"), [
    (FIRST_CLAUSE_S / 8, ["one two three four five six", "seven eight."]),
    (FIRST_CLAUSE_S / 3.9, ["one two three four five", "six seven eight."]),
    (FIRST_CLAUSE_S * 2, ["one two three four", "five six seven eight."]),
    # Words that drip are worth nothing before there is a clause of them.
    (DRIPPING_S * 2, ["one two three four five six", "seven eight."])])
async def test_a_slow_model_is_spoken_after_it_with_fewer_words(seconds_per_word: float, spoken: list[str]) -> None:
    now = 100.0
    texts: list[str] = []

    class Slow(Script):
        async def __aiter__(self) -> AsyncGenerator[str, None]:
            nonlocal now
            for _, text in self.lines:
                yield text
                now += seconds_per_word

    class Writing(Voice):
        async def speak(self, text: str, due: float) -> AsyncGenerator[bytes, None]:
            texts.append(text)
            async for pcm in super().speak(text, due):
                yield pcm

    brain = Slow(*[(0, word) for word in ("one", " two", " three", " four", " five", " six", " seven", " eight.")])
    turn = Turn(brain=cast(Any, brain), voice=cast(Synthesizer, Writing()), canned=Canned(), ear=cast(Any, Ear()),
                conversation=Conversation(10), record=TurnRecord("1", "kitchen", 99.0), system_prompt="",
                deadline_s=50.0, clock=lambda: now)
    await turn.answer("what?")
    assert texts == spoken


async def test_the_coming_history_is_known_while_the_answer_is_still_played() -> None:
    class Slow(Listener):
        async def end_audio(self) -> None:
            await self.may_show.wait()
            await super().end_audio()

    ear, conversation = Slow(), Conversation(10)
    conversation.add("hello?", "Hello.", 0.0)
    made: list[Conversation] = []

    def on_made(future: Conversation) -> None:
        made.append(future)
        ear.may_show.clear()

    asking = asyncio.create_task(turn_of(Script((0, "One is said. Two"), (0, " is too.")), Voice(), ear, conversation,
                                         on_made=on_made).answer("what?"))
    await until(lambda: bool(made))
    told = [(each.question, each.answer) for each in made[0].exchanges]
    assert told == [("hello?", "Hello."), ("what?", "One is said. Two is too.")]
    assert len(conversation.exchanges) == 1, "not heard yet"
    ear.may_show.set()
    await asking
    assert [(each.question, each.answer) for each in conversation.exchanges] == told
    assert len(made) == 1


async def test_an_apology_has_no_history_to_come() -> None:
    made: list[Conversation] = []
    await turn_of(Script(), Voice(), Listener(), Conversation(10), on_made=made.append).answer("what?")
    await turn_of(Script(), Voice(), Listener(), Conversation(10), on_made=made.append).say("Sorry.", "empty")
    assert made == []


async def test_the_model_is_timed_by_its_first_token_though_the_word_is_whole_later() -> None:
    brain = Script((0.2, "Yes."))
    brain.token_at = asyncio.get_running_loop().time() + 0.05
    turn = turn_of(brain, Voice(), Listener(), Conversation(10))
    await turn.answer("what?")
    stages = turn._record.stages
    assert 0.0 <= stages["first_token"] <= 0.1
    assert stages["first_clause"] >= 0.2


async def test_words_that_drip_are_spoken_before_their_sentence_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "DRY_S", 0.3)
    ear, voice = Listener(), Voice()
    brain = Script((0, "It is so."), (0, " Then"), (1.2, " comes"), (1.2, " more."))
    await turn_of(brain, voice, ear, Conversation(10)).answer("what?")
    assert len(voice.due) == 4, "one for each word that came alone"
    assert ear.told[-1] == "complete It is so. Then comes more."
    assert max(later[0] - earlier[0] for earlier, later in zip(ear.parts, ear.parts[1:], strict=False)) < 2.0


class Stocked(Listener):
    """A device that has so many seconds to play from the first audio on."""

    def __init__(self, stock: float) -> None:
        super().__init__()
        self.stock = stock

    async def audio(self, pcm: bytes) -> None:
        self.ahead = self.stock


FOUR = tuple((0.0, f"Sentence number {number} is said here. ") for number in ("one", "two", "three", "four"))


async def test_a_turn_that_has_enough_to_play_lets_those_go_first_who_hear_nothing_yet() -> None:
    voice, others_wait = Voice(), True
    turn = turn_of(Script(*FOUR), voice, Stocked(LENT_S + 0.1), Conversation(10), others_wait=lambda: others_wait)
    answering = asyncio.create_task(turn.answer("what?"))
    await until(lambda: voice.due)
    await asyncio.sleep(3 * TICK_S)
    assert len(voice.due) == 1
    others_wait = False
    await answering
    assert len(voice.due) == 4


async def test_a_turn_that_would_fall_silent_lets_nobody_go_first() -> None:
    voice = Voice()
    turn = turn_of(Script(*FOUR), voice, Stocked(0.0), Conversation(10), others_wait=lambda: True)
    await asyncio.wait_for(turn.answer("what?"), 5)
    assert len(voice.due) == 4


class Hanging(Voice):
    """A voice that hangs in the second piece, after half a second of it."""

    ended = False

    async def speak(self, text: str, due: float) -> AsyncGenerator[bytes, None]:
        if not self.due:
            self.due.append(due)
            yield bytes(RATE * 2)
            return
        yield bytes(RATE)
        try:
            await asyncio.sleep(3600)
        finally:
            self.ended = True


async def test_a_voice_that_hangs_ends_in_the_closing_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "SILENCE_S", 0.5)
    ear, voice, conversation = Listener(), Hanging(), Conversation(10)
    left: list[asyncio.Task[None]] = []
    brain = Script((0, "One is said. Two is said as well."), (0, " Three is never heard."))
    await asyncio.wait_for(turn_of(brain, voice, ear, conversation, on_left=left.append).answer("what?"), 5)
    # A second of audio for 12 letters: half a second more is six of the second sentence's.
    said = f"One is said. Two {BROKEN_OFF}"
    assert ear.told[-2:] == ["end", f"complete {said}"]
    assert conversation.exchanges[-1].answer == said
    assert len(left) == 1, "its deadline still has to find out that the voice hangs"
    assert not voice.ended
    left[0].cancel()
    await asyncio.wait(left)


async def test_a_model_that_falls_silent_ends_in_the_closing_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_module, "SILENCE_S", 0.5)
    ear = Listener()
    await asyncio.wait_for(
        turn_of(Script((0, "One is said."), (3600, "")), Voice(), ear, Conversation(10)).answer("what?"), 5)
    assert ear.told[-1] == f"complete One is said. {BROKEN_OFF}"


class Dying(Voice):
    """A voice that dies in the middle of the second piece."""

    async def speak(self, text: str, due: float) -> AsyncGenerator[bytes, None]:
        yield bytes(RATE * 2 if text == "One is said." else RATE)
        if text.startswith("Two"):
            raise EngineBroke("the voice broke off")


async def test_words_that_a_dead_voice_did_not_speak_are_no_part_of_the_history() -> None:
    ear, conversation = Listener(), Conversation(10)
    await turn_of(Script((0, "One is said."), (0, " Two is said as well."), (0, " Three.")), Dying(), ear,
                  conversation).answer("what?")
    assert conversation.exchanges[-1].answer == "One is said. Two Three."


async def test_all_pictures_that_wait_come_with_the_question() -> None:
    brain, conversation = Script((0, "Yes.")), Conversation(10)
    shots = tuple(Picture(bytes([number]), 4, 3) for number in range(3))
    for shot in shots:
        conversation.keep_picture(shot, until=1e12)
    turn = turn_of(brain, Voice(), Listener(), conversation)
    await turn.answer("what?")
    assert brain.request is not None
    assert brain.request.messages[-1].pictures == shots
    assert conversation.pictures(0.0) == ()
    assert conversation.exchanges[-1].picture == shots[-1]
