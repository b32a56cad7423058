"""What is left of a model's text, however it arrives."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpind.chat.speakable import HELD_WORDS_MOST, WORDS_PAST_LIMIT, Cut, Speakable

LIMIT = 120


def speak(*pieces: str, words: int = LIMIT, truncated: bool = False) -> tuple[str, Cut]:
    speakable = Speakable(words)
    out = "".join(speakable.feed(piece) for piece in pieces)
    return out + speakable.finish(truncated=truncated), speakable.cut


CLEANED = [
    ("Hello there, world.", "Hello there, world."),
    ("", ""),
    (" \n\n ", ""),
    ("...", ""),
    ("?!", ""),
    # Thinking.
    ("<think>Hmm,\n let me see</think>\n\nParis.", "Paris."),
    ("<THINK>Hmm</THINK>Paris.", "Paris."),
    ("<think>never ends", ""),
    ("<think></think>", ""),
    ("<thinking>a < b</thinking>Yes.", "Yes."),
    ("reasoning without an opening</think> Paris.", "reasoning without an opening Paris."),
    ("Is 3 < 4 and 5 > 4? Yes.", "Is 3 < 4 and 5 > 4? Yes."),
    ("One<br>two<|im_end|>", "One two"),
    ("The <b>bold</b> one</s>", "The bold one"),
    # Markdown.
    ("This is **bold** and *soft* and __also__ and `code`.", "This is bold and soft and also and code."),
    ("***Both***, ~~gone~~.", "Both, gone."),
    ("# Title\n\nText.", "Title. Text."),
    ("### A heading\nText under it.", "A heading. Text under it."),
    ("- one\n- two\n- three", "one. two. three"),
    ("* one\n* two\n", "one. two."),
    ("\u2022 one\n\u2022 two\n", "one. two."),
    ("Steps:\n1. Boil it\n2. Eat it\n", "Steps: 1, Boil it. 2, Eat it."),
    ("42.", "42."),
    ("42. It is.", "42. It is."),
    ("> quoted\n> text", "quoted text"),
    (">glued", "glued"),
    ("above\n---\nbelow", "above. below"),
    ("- [ ] open\n- [x] done\n", "open. done."),
    ("| Name | Age |\n|------|----:|\n| Bob | 5 |\n", "Name, Age, Bob, 5."),
    ("First paragraph\n\nSecond one", "First paragraph. Second one"),
    ("a line\nbroken in the middle.", "a line broken in the middle."),
    ("```python\nprint('x')\n```\nThat prints x.", "That prints x."),
    ("Look:\n```\ncode without end", "Look:"),
    ("Run `ls -l` now.", "Run ls -l now."),
    (r"A\*b and \_c\_", "A*b and c".replace("*", "")),
    # Links and addresses.
    ("See [the manual](https://example.com/a_(b)).", "See the manual."),
    ("See [the manual](https://example.com/a?b=c#d).", "See the manual."),
    ("![a cat](cat.png) sits.", "a cat sits."),
    ("Go to https://www.example.com/path?q=1.", "Go to example.com."),
    ("Go to HTTP://Example.COM now", "Go to example.com now"),
    ("Go to www.example.org/x, then", "Go to example.org, then"),
    ("Go to http://192.168.1.4:8000/x now", "Go to a link now"),
    ("(https://a.example/b)", "(a.example)"),
    ("<https://example.com/x> is it", "example.com is it"),
    ("Use ftp://files.example.org:2121/pub/a.zip, please", "Use files.example.org, please"),
    ("Use git+ssh://git@host.example.com/x.git now", "Use host.example.com now"),
    ("It is at rtsp://192.168.1.4/stream now", "It is at a link now"),
    ("Open file:///etc/passwd now", "Open a link now"),
    ("Write to mailto:me@example.com?subject=Hi now", "Write to me@example.com now"),
    ("See en.wikipedia.org/wiki/Paris_(Texas).", "See en.wikipedia.org."),
    ("Read example.com/a/b?c=d#e, then", "Read example.com, then"),
    ("Read **github.com/owner/repo** now", "Read github.com now"),
    ("Read example.com or and/or Node.js/React at 60 km/h", "Read example.com or and/or Node.js/React at 60 km/h"),
    ("It is so[1][2, 3].", "It is so."),
    ("It is so【4†source】.", "It is so."),
    ("A [note] stays", "A note stays"),
    ("Wow![1] Yes", "Wow! Yes"),
    # Thoughts in triangles.
    ("\u25c1think\u25b7I <wonder>.\u25c1/think\u25b7Yes.", "Yes."),
    ("Well \u25c1think\u25b7 hmm </think> \u25c1/think\u25b7 yes.", "Well yes."),
    ("Then \u25c1think\u25b7 without end", "Then"),
    # Emoji and signs.
    ("Hi \U0001f600! Great \U0001f44d\U0001f3fd", "Hi! Great"),
    ("\U0001f468\u200d\U0001f469\u200d\U0001f467 family", "family"),
    ("Flag \U0001f1e9\U0001f1ea and 1\ufe0f\u20e3", "Flag and 1"),
    ("20 °C costs 5 € or $7", "20 °C costs 5 € or $7"),
    ("a \u2192 b \u2714 c", "a b c"),
    ("broken \ud83d surrogate", "broken surrogate"),
    ("bell\x07 zero\u200bwidth", "bell zerowidth"),
    ("2 * 3 = 6 and 4*5", "2 times 3 = 6 and 4 times 5"),
    ("salt & pepper &amp; oil", "salt and pepper and oil"),
    ("number #1 and #hashtag and C#", "number number 1 and hashtag and C#"),
    ("snake_case_name", "snake case name"),
    ("Yes!!!!! No???", "Yes! No?"),
    ("Wait........ what", "Wait... what"),
    ("soooooooo good", "sooo good"),
    ("It costs 1000000000 dollars", "It costs 1000000000 dollars"),
    ("x" * 200 + " then " + "abc" * 40 + " end", "xxx then end"),
    # Other scripts.
    ("你好\uff01我很好。", "你好\uff01我很好。"),
    ("नमस्ते दुनिया।", "नमस्ते दुनिया।"),
    ("Grüße aus Köln, señor", "Grüße aus Köln, señor"),
]


@pytest.mark.parametrize(("text", "expected"), CLEANED)
def test_what_is_left_at_every_split(text: str, expected: str) -> None:
    assert speak(text) == (expected, Cut.NO)
    for cut in range(len(text) + 1):
        assert speak(text[:cut], text[cut:]) == (expected, Cut.NO)
    assert speak(*text) == (expected, Cut.NO)


PARTS = st.sampled_from([*(text for text, _ in CLEANED if len(text) < 80), " ", "\n", "\n\n", ". ", "*", "**", "_", "`",
                         "```", "[", "](", ")", "]", "!", "<", "<think>", "</think>", "</", ">", "|", "#", "- ", "1. ",
                         "http://", "mailto:", "x://", "a.com/", "\u25c1think\u25b7", "\u25c1/",
                         "a", "word ", "The cat sat. ", "1", "【", "】", "\ud83d", "\u200d", "&", "\\", "~"])


@settings(max_examples=300, deadline=None)
@given(st.lists(PARTS, max_size=14), st.lists(st.integers(0, 500), max_size=8), st.integers(1, 30), st.booleans())
def test_the_result_does_not_depend_on_the_cuts(parts: list[str], cuts: list[int], words: int, truncated: bool) -> None:
    text = "".join(parts)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    whole = speak(text, words=words, truncated=truncated)
    assert speak(*pieces, words=words, truncated=truncated) == whole
    assert speak(*text, words=words, truncated=truncated) == whole


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_text_comes_out_clean_and_encodable(text: str) -> None:
    out, _ = speak(text)
    out.encode("utf-8")
    assert "<think>" not in out
    assert "**" not in out
    assert "```" not in out
    assert out == out.strip()
    assert not out or any(letter.isalnum() for letter in out) or all(ord(letter) > 127 for letter in out)


def test_the_first_sentence_comes_word_by_word() -> None:
    speakable = Speakable(LIMIT)
    given = [speakable.feed(piece) for piece in ["Par", "is is", " the", " cap", "ital. ", "It lies"]]
    assert given == ["", "Paris", " is", " the", " capital.", ""]
    assert speakable.spoke


def test_nothing_spoken_is_told() -> None:
    speakable = Speakable(LIMIT)
    speakable.feed("<think>a</think> ** -- \U0001f600 ...")
    assert speakable.finish() == ""
    assert not speakable.spoke


INTRODUCTION = "I can't see the picture."


@pytest.mark.parametrize(("answer", "spoken", "echoed"), [
    ("I can't see the picture. It is red.", "It is red.", True),
    ("I can\u2019t see the picture! It is red.", "It is red.", True),
    ("I can't see the picture. I can't see the picture. It is red.", "It is red.", True),
    ("I can't see the picture", "", True),
    ("I can't see the pictures. It is red.", "I can't see the pictures. It is red.", False),
    ("I can't say. It is red.", "I can't say. It is red.", False),
    ("It is red. I can't see the picture. It is so.", "It is red.", False),
    ("I", "I", False),
])
def test_an_introduction_is_not_said_again(answer: str, spoken: str, *, echoed: bool) -> None:
    for size in (1, 3, 7, len(answer)):
        speakable = Speakable(LIMIT)
        speakable.introduce(INTRODUCTION)
        out = "".join(speakable.feed(answer[at:at + size]) for at in range(0, len(answer), size)) + speakable.finish()
        assert out.strip() == spoken
        assert speakable.echoed == echoed


def test_an_introduction_is_held_until_it_is_another_sentence() -> None:
    speakable = Speakable(LIMIT)
    speakable.introduce(INTRODUCTION)
    assert speakable.feed("I can't see ") == ""
    assert speakable.release() == ""
    assert speakable.feed("any reason ") == "I can't see any reason"


def test_later_sentences_come_whole() -> None:
    speakable = Speakable(LIMIT)
    assert speakable.feed("One is here. Two is ") == "One is here."
    assert speakable.feed("over there, ") == ""
    assert speakable.feed("I think. ") == " Two is over there, I think."


def test_a_long_later_sentence_is_not_held_for_ever() -> None:
    speakable = Speakable(LIMIT)
    speakable.feed("One is here. ")
    out = speakable.feed(" ".join(f"word{index}" for index in range(30)) + ", and ")
    assert "word29," in out
    endless = Speakable(LIMIT)
    endless.feed("One is here. ")
    assert endless.feed(" ".join(f"word{index}" for index in range(HELD_WORDS_MOST + 5)) + " ") != ""


@pytest.mark.parametrize("text", [
    "The cat sat on the mat. The dog ran. The cat sat on the mat. The dog ran. The cat",
    "The cat sat on the mat. The dog ran. THE CAT, sat on the mat! And more.",
    "The cat sat on the mat.\n\nThe dog ran.\n- The cat sat on the mat\n- The dog ran",
])
def test_no_sentence_is_said_twice(text: str) -> None:
    out, cut = speak(text)
    assert out == "The cat sat on the mat. The dog ran."
    assert cut is Cut.REPETITION


def test_a_short_sentence_may_come_again_but_not_for_ever() -> None:
    assert speak("Yes. Is it? Yes. It is. Yes.")[0] == "Yes. Is it? Yes. It is. Yes."
    out, cut = speak("Yes. " * 40)
    assert out == "Yes. Yes. Yes."
    assert cut is Cut.REPETITION


@pytest.mark.parametrize("loop", ["and the cat ", "ha ", "I think that I am ", "na na hey ", "很好"])
def test_a_loop_without_a_full_stop_is_cut(loop: str) -> None:
    for before in ("", "Here is a song for you. "):
        out, cut = speak(before + loop * 60)
        assert cut is Cut.REPETITION
        assert len(out) < len(before) + len(loop) * 5 + 2
        assert out.endswith(".")


@pytest.mark.parametrize("text", [
    "That is very very very good.", "Bye bye, see you.", "The number is 5 5 5 5 5 5 1.",
    "No, no, no, that is wrong.", "Row, row, row your boat gently down the stream."])
def test_emphasis_is_no_loop(text: str) -> None:
    assert speak(text) == (text, Cut.NO)


def test_a_long_answer_is_cut_at_the_end_of_a_sentence() -> None:
    text = " ".join(f"Sentence number {index} is here for you." for index in range(300))
    out, cut = speak(text, words=20)
    assert cut is Cut.LENGTH
    assert out == " ".join(f"Sentence number {index} is here for you." for index in range(3))


def test_a_sentence_without_end_is_cut_too() -> None:
    out, cut = speak(" ".join(f"word{index}" for index in range(2000)), words=20)
    assert cut is Cut.LENGTH
    assert len(out.split()) == 20 + WORDS_PAST_LIMIT
    assert out.endswith(".")


def test_abbreviations_and_numbers_do_not_end_a_sentence() -> None:
    text = "Dr. Smith paid 3.50 at St. James, e.g. for J. Doe. Then he left."
    assert speak(text, words=5) == ("Dr. Smith paid 3.50 at St. James, e.g. for J. Doe.", Cut.LENGTH)


def test_an_unfinished_last_sentence_is_left_away() -> None:
    said = "Paris is the capital of France and its largest city."
    assert speak(f"{said} It lies on the river", truncated=True) == (said, Cut.NO)
    assert speak(f"{said} It lies on the river") == (f"{said} It lies on the river", Cut.NO)


def test_an_unfinished_sentence_is_kept_when_little_else_was_said() -> None:
    assert speak("Sure! It is about the thing,", truncated=True) == ("Sure! It is about the thing.", Cut.NO)
    assert speak("It is about the", truncated=True) == ("It is about the.", Cut.NO)


def test_after_the_cut_nothing_comes() -> None:
    speakable = Speakable(1)
    assert speakable.feed("One two three. Four five six. ") == "One two three."
    assert speakable.done
    assert speakable.feed("Seven. ") == ""
    assert speakable.finish() == ""


def test_a_hundred_thousand_signs_in_one_piece_are_no_trouble() -> None:
    for sign in ("<", "[", "`", "![", "<a", "*", "a", "\u3010", "](", "|", "<think>x"):
        begun = time.process_time()
        speak(sign * (100_000 // len(sign)))
        assert time.process_time() - begun < 2
