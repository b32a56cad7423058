from __future__ import annotations

import pytest

from hotpind.bench.peer_stack import PeerTurn
from hotpind.bench.peers import Comparison
from hotpind.bench.sample import Sample


def ours(transcript: float, first_token: float, first_audio: float) -> Sample:
    return Sample("pin", "a", answered=True, first_audio=first_audio, complete=None,
                  marks={"transcript": transcript, "first_token": first_token, "first_audio_ready": first_audio - 0.01})


def test_ratios_are_of_medians_and_leave_out_the_models_first_word_when_asked() -> None:
    found = Comparison([ours(0.05, 0.15, 0.3), ours(0.07, 0.17, 0.4), ours(0.3, 0.5, 2.0)],
                       [PeerTurn(0.4, 0.5, 0.8, "a"), PeerTurn(0.5, 0.6, 0.9, "a"), PeerTurn(0.1, 0.2, 0.7, "a")])
    ratios = found.ratios()
    assert ratios["first_audio"] == pytest.approx(0.4 / 0.8, abs=1e-3)
    assert ratios["without_model"] == pytest.approx(0.3 / 0.7, abs=1e-3)
    assert ratios["transcript"] == pytest.approx(0.07 / 0.4, abs=1e-3)


def test_a_side_without_turns_gives_no_ratio() -> None:
    assert Comparison([ours(0.1, 0.2, 0.3)]).ratios() == {}


def test_the_report_holds_no_word() -> None:
    found = Comparison([ours(0.05, 0.15, 0.3)], [PeerTurn(0.4, 0.5, 0.8, "a secret")])
    assert "secret" not in str(found.as_json())
