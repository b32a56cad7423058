"""Where a streamed answer is cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.speech.clauses import LONGEST_PIECE, ClauseSplitter


def pieces(text: str) -> list[str]:
    splitter = ClauseSplitter()
    found = [piece for word in re.findall(r"\s*\S+", text) for piece in splitter.feed(word)]
    return found + splitter.finish()


@pytest.mark.parametrize(("answer", "first"), [
    ("The capital of France is Paris, which lies on the Seine. It is large.", "The capital of France is Paris,"),
    ("Well, it depends on the day.", "Well,"),
    ("It is 1,000 metres high: quite a lot.", "It is 1,000 metres high:"),
    ("Paris is the capital and the largest city of France by far", "Paris is the capital and the"),
    ("Yes. It does.", "Yes."),
    ("Dr. Smith lives here, I think.", "Dr. Smith lives here,"),
    ("Hello \u2013 nice to meet you.", "Hello \u2013"),
    ("Paris", "Paris"),
])
def test_the_first_clause_comes_at_once(answer: str, first: str) -> None:
    assert pieces(answer)[0] == first


def test_the_first_clause_is_given_out_before_the_rest_is_there() -> None:
    splitter = ClauseSplitter()
    assert splitter.feed("The sky is blue, ") == ["The sky is blue,"]
    assert splitter.feed("because of the air") == []
    assert splitter.feed(". And so") == ["because of the air."]


def test_the_rest_comes_by_sentence() -> None:
    assert pieces("First, this. Then Mr. Jones came home. He sat down.") == [
        "First,", "this.", "Then Mr. Jones came home.", "He sat down."]


def test_when_playback_runs_dry_whole_words_are_given_out() -> None:
    splitter = ClauseSplitter()
    assert splitter.feed("Yes, ") == ["Yes,"]
    splitter.feed("because the moon goes rou")
    assert splitter.hurry() == ["because the moon goes"]
    assert splitter.hurry() == []
    assert splitter.feed("nd the earth. It") == ["round the earth."]
    assert splitter.finish() == ["It"]


def test_a_slow_answer_begins_with_the_words_there_are() -> None:
    splitter = ClauseSplitter()
    splitter.feed("The capital of")
    assert splitter.first_words() == []
    splitter.feed(" St.")
    assert splitter.first_words() == [], "a title belongs to the name after it"
    splitter.feed(" Lucia")
    assert splitter.first_words() == ["The capital of St. Lucia"]
    splitter.feed(" is Castries, a small port of")
    assert splitter.first_words() == [], "it has begun"
    assert splitter.finish() == ["is Castries, a small port of"]


def test_endless_sentences_are_cut() -> None:
    assert all(len(piece) <= LONGEST_PIECE for piece in pieces("word " * 500))


@given(st.text(alphabet="ab .,!?\u2013", max_size=200))
def test_no_word_is_lost_doubled_or_reordered(text: str) -> None:
    letters = "".join(character for character in text if character.isalnum())
    assert "".join(character for piece in pieces(text) for character in piece if character.isalnum()) == letters


def test_a_sentence_is_given_out_with_its_last_word() -> None:
    splitter = ClauseSplitter()
    for word in ("Paris", " is", " the", " capital", " of"):
        assert splitter.feed(word) == []
    assert splitter.feed(" France.") == ["Paris is the capital of France."]
    assert splitter.feed(" It lies on the Seine.") == ["It lies on the Seine."]
    assert splitter.feed(' Some say "the river.\u201d') == ['Some say "the river.\u201d']
    assert splitter.feed(" In the U.S.") == []
    assert splitter.feed(" Dr.") == []
    assert splitter.feed(" Jones said so!") == ["In the U.S. Dr. Jones said so!"]
    assert splitter.finish() == []


@given(st.lists(st.tuples(st.text(alphabet="abc ,.", max_size=12), st.sampled_from(["", "first", "dry"])), max_size=40))
def test_hurrying_loses_no_word(steps: list[tuple[str, str]]) -> None:
    splitter, found, fed = ClauseSplitter(), [], ""
    for text, hurry in steps:
        fed += text
        found += splitter.feed(text)
        if hurry:
            found += splitter.first_words() if hurry == "first" else splitter.hurry()
    found += splitter.finish()
    assert "".join("".join(found).split()).replace(",", "").replace(".", "") == \
        "".join(fed.split()).replace(",", "").replace(".", "")
