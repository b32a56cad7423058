"""The line for `systemctl status`."""

from __future__ import annotations

import pytest

from hotpind.chat.messages import BackendStatus
from hotpind.conversation.turn import TurnRecord
from hotpind.web.status import Status


def make(*, faults: list[str], activity: str = "") -> Status:
    return Status(engines=[], backends=list, devices=lambda: ["kitchen"], faults=lambda: faults, facts=dict,
                  activity=lambda: activity)


def test_before_it_is_ready_it_says_what_it_waits_for() -> None:
    assert make(faults=[]).line() == "loading models"
    assert make(faults=["the disk is full"]).line() == "the disk is full"
    assert make(faults=["the disk was full"], activity="downloading voice (5 %)").line() == "downloading voice (5 %)"


def test_then_who_answers_how_many_listen_and_how_fast_it_was() -> None:
    status = make(faults=["the disk is full"], activity="downloading eyes (5 %)")
    status.ready = True
    status.turn(TurnRecord("1", "kitchen", 0.0, stages={"first_audio": 0.25}))
    status.turn(TurnRecord("2", "kitchen", 0.0, outcome="cancelled"))
    assert status.line() == ("local, 1 device, last answer after 0.25 s, downloading eyes (5 %), "
                             "fault: the disk is full")


@pytest.mark.parametrize(("states", "cloud"), [
    ([], "local"), (["off"], "local"), (["online"], "online"), (["degraded"], "offline"), (["rate-limited"], "offline"),
    (["degraded", "online"], "online"),
])
def test_the_cloud_is_online_while_a_question_would_be_sent_to_it(states: list[str], cloud: str) -> None:
    rows = [BackendStatus(f"far{number}", state) for number, state in enumerate(states)]
    status = Status(engines=[], backends=lambda: [*rows, BackendStatus("local", "online")], devices=list, faults=list,
                    facts=dict)
    assert status.cloud == status.health()["brain"] == status.condition()["brain"] == cloud
