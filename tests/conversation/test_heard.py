"""What of an answer was heard."""

from __future__ import annotations

from hotpind.conversation.heard import Heard


def test_a_piece_counts_by_the_share_that_was_played() -> None:
    heard = Heard()
    heard.begin("The first sentence.")
    heard.audio(1000)
    heard.audio(1000)
    heard.begin("one two three four")
    heard.audio(4000)
    assert heard.text_played(0) == ""
    assert heard.text_played(2000) == "The first sentence."
    assert heard.text_played(2000 + 2100) == "The first sentence. one two"
    assert heard.text_played(99_999) == heard.sent_text == "The first sentence. one two three four"


def test_a_piece_without_audio_was_not_heard() -> None:
    heard = Heard()
    heard.begin("lost")
    assert heard.sent_text == ""
    assert not heard.last_has_audio
    heard.begin("spoken")
    heard.audio(10)
    assert heard.sent_text == "spoken"


def test_a_piece_that_broke_off_counts_by_the_audio_it_got() -> None:
    heard = Heard()
    heard.begin("one two three four")
    heard.audio(900)
    heard.cut_short(bytes_per_letter=100)
    assert heard.sent_text == "one two", "18 letters would take 1800 bytes"
    heard.begin("whole words of speech here")
    heard.audio(1800 * 2)
    heard.begin("one two three four")
    heard.audio(900)
    heard.cut_short(bytes_per_letter=1)
    assert heard.sent_text == "one two whole words of speech here one"
    heard.begin("nothing of it")
    heard.cut_short(bytes_per_letter=1)
    assert heard.sent_text == "one two whole words of speech here one"
