"""Questions with a picture, put to models with eyes and without."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from hotpind.chat import chain as chain_module
from hotpind.chat import local_backend, pictures
from hotpind.chat.chain import Chain
from hotpind.chat.messages import ChatRequest, Message, Picture
from hotpind.chat.ocr import PictureReader
from hotpind.chat.pictures import shrink
from hotpind.chat.readiness import Readiness
from hotpind.errors import NoAnswer
from tests.chat.asking import ask, question, settled, status
from tests.chat.conftest import LOCAL_ANSWER, FakeEngine, MakeChain
from tests.chat.test_ocr import ECHO, counts
from tests.fakes.groq import ANSWER, KEY, FakeGroq
from tests.waiting import until


def red_square() -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (800, 600), "red").save(buffer, "JPEG")
    return Picture(buffer.getvalue(), 800, 600)


async def test_a_local_model_without_eyes_says_so(make_chain: MakeChain, engine: FakeEngine) -> None:
    async with make_chain(key=None) as chain:
        text, _, _ = await ask(chain, question("What is this?", red_square()))
        assert text == f"I can't see the picture. {LOCAL_ANSWER}"
        assert b"image_url" not in engine.server.questions[0].raw
        assert "cannot be seen" in engine.server.questions[0].body["messages"][-1]["content"]
        text, _, _ = await ask(chain, question("And what is the time?"))
        assert text == LOCAL_ANSWER


async def test_a_question_about_an_earlier_picture_is_answered_as_honestly(make_chain: MakeChain,
                                                                           engine: FakeEngine) -> None:
    shown = Message("user", "What is this?", (red_square(),))
    async with make_chain(key=None) as chain:
        for seen, aside in (("It is a red square.", "I can't see the picture. "),
                            ("I can't see the picture. It may be a square.", "")):
            text, _, _ = await ask(chain, ChatRequest((
                shown, Message("assistant", seen), Message("user", "What colour is it?"))))
            assert text == aside + LOCAL_ANSWER
            request = engine.server.questions[-1]
            assert b"image_url" not in request.raw
            told = [message["content"] for message in request.body["messages"]]
            assert told == ["What is this?\n\n(The attached picture cannot be seen.)", seen, "What colour is it?"]


async def test_the_text_of_an_earlier_picture_is_still_known(make_chain: MakeChain, engine: FakeEngine,
                                                             readings: Callable[[], int]) -> None:
    shown = question("What is this?", red_square())
    again = ChatRequest((*shown.messages, Message("assistant", "A sign."), Message("user", "What does it say?")))
    async with make_chain(key=None) as chain:
        await ask(chain, shown)
        expect(chain, again, engine)
        text, _, _ = await ask(chain, again)
        assert text.startswith("I can't see the picture, but I can read some of its text. ")
        first, second = engine.server.questions
        assert '"sign"' in second.body["messages"][1]["content"]
        assert second.body["messages"][:2] == first.body["messages"][:2], "what was read before begins in the same way"
        assert readings() == 1


@pytest.mark.parametrize("key", [None, KEY])
async def test_only_pictures_are_encoded_in_a_thread(make_chain: MakeChain, monkeypatch: pytest.MonkeyPatch,
                                                     engine: FakeEngine, key: str | None) -> None:
    """The way to a thread and back is longer than a question of words takes to encode."""
    threaded: list[str] = []
    to_thread = asyncio.to_thread

    async def note(work: Callable[..., object], *arguments: object) -> object:
        threaded.append(getattr(work, "__name__", ""))
        return await to_thread(work, *arguments)

    engine.sees_images = True
    async with make_chain(key=key) as chain:
        await settled(chain)
        await ask(chain)
        monkeypatch.setattr(asyncio, "to_thread", note)
        await ask(chain)
        assert "_body" not in threaded
        assert "_encoded" not in threaded
        await ask(chain, question("What is this?", red_square()))
        assert ("_encoded" if key else "_body") in threaded


async def test_a_local_model_without_eyes_says_nothing_when_it_has_no_answer(make_chain: MakeChain,
                                                                             engine: FakeEngine) -> None:
    engine.server.behave("think")
    async with make_chain(key=None) as chain:
        with pytest.raises(NoAnswer):
            await ask(chain, question("What is this?", red_square()))


async def test_a_local_model_with_eyes_sees_a_small_picture(make_chain: MakeChain, engine: FakeEngine) -> None:
    engine.sees_images = True
    async with make_chain(key=None) as chain:
        text, _, _ = await ask(chain, question("What is this?", red_square()))
        assert text == LOCAL_ANSWER
        (_, image) = engine.server.questions[0].body["messages"][-1]["content"]
        with Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].split(",")[1]))) as sent:
            assert sent.size == (512, 384)


async def test_too_large_is_the_clouds_answer_all_the_same(make_chain: MakeChain, cloud: FakeGroq) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((1200, 1200), 120).convert("RGB").save(buffer, "JPEG", quality=95)
    async with make_chain() as chain:
        await settled(chain)
        cloud.behave("too_large", most=400_000)
        text, answer, _ = await ask(chain, question("What is this?", Picture(buffer.getvalue(), 1200, 1200)))
        assert (text, answer.backend) == (ANSWER, "groq")
        assert status(chain).state == "online"


@pytest.fixture
def readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Install a reader that sees the word "sign" everywhere; return what tells how many pictures it was given."""
    path = tmp_path / "readings"
    script = ECHO + counts(path).replace("say(data)", "say(b'sign')")

    class Reader(PictureReader):
        """Reads with the child above."""

        def __init__(self) -> None:
            super().__init__((sys.executable, "-c", script))

        @staticmethod
        def available() -> bool:
            return True

    monkeypatch.setattr(chain_module, "PictureReader", Reader)
    return lambda: len(path.read_text()) if path.exists() else 0


def expect(chain: Chain, request: ChatRequest, engine: FakeEngine) -> None:
    """Tell the chain of a question as the appliance does when a device begins to speak."""
    class Local:
        """Reads nothing ahead."""

        model = engine.model
        sees_images = engine.sees_images

        def warm(self, messages: object) -> None:
            pass

        def stand_by(self, messages: object) -> None:
            pass

    Readiness(chain, Local(), lambda: False).expect(request)


async def test_a_picture_s_text_is_read_while_the_question_is_spoken(
        make_chain: MakeChain, engine: FakeEngine, readings: Callable[[], int]) -> None:
    async with make_chain(key=None) as chain:
        expect(chain, question("", red_square()), engine)
        await until(readings)
        expect(chain, question("What is", red_square()), engine)
        text, _, _ = await ask(chain, question("What is this?", red_square()))
        assert text.startswith("I can't see the picture, but I can read some of its text. ")
        assert '"sign"' in engine.server.questions[0].body["messages"][-1]["content"]
        assert readings() == 1


async def test_no_text_is_read_while_the_cloud_would_be_asked(
        make_chain: MakeChain, engine: FakeEngine, readings: Callable[[], int]) -> None:
    async with make_chain() as chain:
        await settled(chain)
        expect(chain, question("", red_square()), engine)
        assert chain._local is not None
        assert chain._local._reader is not None
        assert not chain._local._reader._jobs.running
    assert not readings()


@dataclass
class Shrinking:
    """Holds up whoever makes a picture smaller."""

    times: int = 0
    may_end: threading.Event = field(default_factory=threading.Event)

    def shrink(self, picture: Picture, *, side: int, quality: int) -> Picture:
        """Do as the real one does, once it may."""
        self.times += 1
        assert self.may_end.wait(10)
        return shrink(picture, side=side, quality=quality)


@pytest.fixture
def shrinking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shrinking]:
    shrinking = Shrinking()
    monkeypatch.setattr(pictures, "shrink", shrinking.shrink)
    yield shrinking
    shrinking.may_end.set()


async def test_a_picture_is_made_smaller_while_the_question_is_spoken(make_chain: MakeChain, engine: FakeEngine,
                                                                      shrinking: Shrinking) -> None:
    engine.sees_images = True
    async with make_chain(key=None) as chain:
        expect(chain, question("", red_square()), engine)
        await until(lambda: shrinking.times == 1)
        shrinking.may_end.set()
        expect(chain, question("What is", red_square()), engine)
        text, _, _ = await ask(chain, question("What is this?", red_square()))
        assert text == LOCAL_ANSWER
        (_, image) = engine.server.questions[0].body["messages"][-1]["content"]
        with Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].split(",")[1]))) as sent:
            assert sent.size == (local_backend.PICTURE_LIMITS.side, 384)
        assert shrinking.times == 1
        # What the model was shown before the question is to the letter what came with it: it need not look again.
        ((before,),) = engine.warmed
        assert [part for part in before["content"] if part["type"] == "image_url"] == [image]


async def test_closing_does_not_wait_for_a_picture_that_is_made_smaller(make_chain: MakeChain, engine: FakeEngine,
                                                                        shrinking: Shrinking) -> None:
    engine.sees_images = True
    async with make_chain(key=None) as chain:
        expect(chain, question("", red_square()), engine)
        await until(lambda: shrinking.times == 1)
        assert chain._local is not None
        fitting = chain._local._fitting
        async with asyncio.timeout(5):
            await chain.close()
        assert not fitting.running


async def test_a_picture_that_cannot_be_decoded_is_left_out_of_the_question(make_chain: MakeChain,
                                                                            engine: FakeEngine) -> None:
    engine.sees_images = True
    broken = Picture(b"\xff\xd8 not a jpeg", 4000, 3000)
    async with make_chain(key=None) as chain:
        expect(chain, question("", broken), engine)
        assert (await ask(chain, question("What is this?", broken)))[0] == LOCAL_ANSWER
        assert b"image_url" not in engine.server.questions[0].raw
