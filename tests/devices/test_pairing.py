"""The pairing desk: who gets in, when, and who has to wait."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.devices.device import describe
from hotpind.devices.pairing import (
    MOST_DECIDED,
    MOST_PENDING,
    MOST_PENDING_PER_ADDRESS,
    PENDING_SECONDS,
    REPEAT_SECONDS,
    Ask,
    Outcome,
    PairingDesk,
)
from hotpind.errors import DeviceError

HOME, AWAY = "198.51.100.20", "198.51.100.66"


def make_desk() -> PairingDesk:
    numbers = count()
    return PairingDesk(lambda: f"nonce-{next(numbers)}")


def ask(device: str = "pin-1", *, address: str = HOME, nonce: str = "", attempt: str = "") -> Ask:
    return Ask(describe(device), address, nonce, attempt)


def test_the_first_to_ask_gets_in_and_closes_the_window() -> None:
    desk = make_desk()
    desk.open(0, 600)
    assert desk.ask(ask("pin-1"), 1).outcome is Outcome.GRANTED
    assert desk.open_for(1) == 0
    assert desk.ask(ask("pin-2"), 1).outcome is Outcome.PENDING


def test_the_window_closes_by_time() -> None:
    desk = make_desk()
    desk.open(0, 120)
    assert desk.open_for(119.9) > 0
    assert desk.open_for(120) == 0
    assert desk.ask(ask(), 120).outcome is Outcome.PENDING


def test_a_window_of_no_length_is_closed() -> None:
    desk = make_desk()
    desk.open(0, 0)
    assert desk.ask(ask(), 0).outcome is Outcome.PENDING


def test_an_approved_device_gets_in_once_with_its_nonce() -> None:
    desk = make_desk()
    nonce = desk.ask(ask(), 0).nonce
    assert desk.ask(ask(nonce=nonce), 3).outcome is Outcome.PENDING
    assert desk.ask(ask(nonce=nonce), 3).nonce == nonce
    assert desk.approve("pin-1", 4).device.device_id == "pin-1"
    assert desk.ask(ask(nonce=nonce), 5).outcome is Outcome.GRANTED
    assert desk.ask(ask(nonce=nonce), 5).outcome is Outcome.BAD_NONCE
    assert desk.pending(5) == ()


def test_a_stolen_nonce_is_of_no_use_to_another_device() -> None:
    desk = make_desk()
    nonce = desk.ask(ask("pin-1"), 0).nonce
    desk.approve("pin-1", 1)
    assert desk.ask(ask("thief", address=AWAY, nonce=nonce), 2).outcome is Outcome.BAD_NONCE
    assert desk.ask(ask("pin-1", nonce=nonce), 3).outcome is Outcome.GRANTED


def test_a_guessed_nonce_is_not_good_even_while_the_window_is_open() -> None:
    desk = make_desk()
    desk.open(0, 600)
    assert desk.ask(ask(nonce="guess"), 1).outcome is Outcome.BAD_NONCE
    assert desk.open_for(1) > 0


def test_a_waiting_device_uses_a_window_that_opens() -> None:
    desk = make_desk()
    nonce = desk.ask(ask("pin-1"), 0).nonce
    desk.open(10, 120)
    assert desk.ask(ask("pin-1", nonce=nonce), 11).outcome is Outcome.GRANTED
    assert desk.open_for(11) == 0


def test_a_denied_device_stays_denied_until_it_is_forgotten() -> None:
    desk = make_desk()
    nonce = desk.ask(ask(), 0).nonce
    desk.deny("pin-1", 1)
    assert desk.ask(ask(nonce=nonce), 2).outcome is Outcome.DENIED
    assert desk.ask(ask(), 3).outcome is Outcome.DENIED
    assert desk.pending(3) == ()
    assert desk.ask(ask(), 3 + PENDING_SECONDS + 1).outcome is Outcome.PENDING


def test_a_restarted_device_takes_the_place_of_its_earlier_request() -> None:
    desk = make_desk()
    first = desk.ask(ask(), 0).nonce
    second = desk.ask(ask(), 1).nonce
    assert len(desk.pending(1)) == 1
    assert desk.ask(ask(nonce=first), 2).outcome is Outcome.BAD_NONCE
    assert desk.ask(ask(nonce=second), 2).outcome is Outcome.PENDING


def test_the_same_id_from_elsewhere_waits_apart_and_has_to_be_named() -> None:
    desk = make_desk()
    mine = desk.ask(ask("pin-1", address=HOME), 0).nonce
    theirs = desk.ask(ask("pin-1", address=AWAY), 0).nonce
    with pytest.raises(DeviceError, match="several requests") as refused:
        desk.approve("pin-1", 1)
    assert refused.value.status == 409
    request = next(each.request for each in desk.pending(1) if each.address == HOME)
    desk.approve(request, 1)
    assert desk.ask(ask("pin-1", nonce=mine), 2).outcome is Outcome.GRANTED
    assert desk.ask(ask("pin-1", address=AWAY, nonce=theirs), 2).outcome is Outcome.PENDING


def test_one_address_cannot_fill_the_list() -> None:
    desk = make_desk()
    outcomes = [desk.ask(ask(f"flood-{n}", address=AWAY), 0).outcome for n in range(50)]
    assert outcomes.count(Outcome.PENDING) == MOST_PENDING_PER_ADDRESS
    assert desk.ask(ask("pin-1", address=HOME), 0).outcome is Outcome.PENDING


def test_the_list_is_bounded_and_empties_with_time() -> None:
    desk = make_desk()
    for n in range(100):
        desk.ask(ask(f"flood-{n}", address=f"198.51.100.{n}"), 0)
    assert len(desk.pending(0)) == MOST_PENDING
    assert desk.ask(ask("pin-1"), 1).outcome is Outcome.FULL
    assert desk.ask(ask("pin-1"), PENDING_SECONDS + 1).outcome is Outcome.PENDING
    desk.open(PENDING_SECONDS + 1, 120)
    assert desk.ask(ask("pin-2"), PENDING_SECONDS + 2).outcome is Outcome.GRANTED


def test_unknown_requests_cannot_be_decided() -> None:
    desk = make_desk()
    with pytest.raises(DeviceError, match="no request") as refused:
        desk.approve("nobody", 0)
    assert refused.value.status == 404
    desk.ask(ask(), 0)
    desk.approve("pin-1", 0)
    with pytest.raises(DeviceError, match="no request"):
        desk.deny("pin-1", 0)


def test_a_lost_answer_is_given_again_to_who_has_the_attempt() -> None:
    desk = make_desk()
    desk.open(0, 600)
    assert desk.ask(ask(attempt="a" * 32), 0).outcome is Outcome.GRANTED
    assert desk.ask(ask(attempt="a" * 32), 5).outcome is Outcome.GRANTED


@pytest.mark.parametrize("again", [
    ask(), ask(attempt="b" * 32), ask(attempt="a" * 32, address=AWAY), ask("pin-2", attempt="a" * 32)])
def test_a_lost_answer_is_given_again_to_nobody_else(again: Ask) -> None:
    desk = make_desk()
    desk.open(0, 600)
    desk.ask(ask(attempt="a" * 32), 0)
    assert desk.ask(again, 5).outcome is Outcome.PENDING


def test_an_answer_that_arrived_is_not_given_again() -> None:
    desk = make_desk()
    desk.open(0, 600)
    desk.ask(ask(attempt="a" * 32), 0)
    desk.used("pin-1")
    assert desk.ask(ask(attempt="a" * 32), 5).outcome is Outcome.PENDING


def test_a_request_that_was_late_on_its_way_does_not_take_another_ones_window() -> None:
    """On a bad link a request may arrive after the one that repeated it was answered, and its token used."""
    desk = make_desk()
    desk.open(0, 600)
    desk.ask(ask("pin-1", attempt="a" * 32), 0)
    desk.used("pin-1")
    desk.open(3, 600)
    assert desk.ask(ask("pin-1", attempt="a" * 32), 5).outcome is Outcome.PENDING
    assert desk.open_for(5) > 0
    assert desk.ask(ask("pin-2", attempt="b" * 32), 6).outcome is Outcome.GRANTED
    desk.open(7, 600)
    assert desk.ask(ask("pin-1", attempt="c" * 32), 8).outcome is Outcome.GRANTED, "a new attempt is one"


def test_an_answer_is_not_given_again_later() -> None:
    desk = make_desk()
    desk.open(0, 600)
    desk.ask(ask(attempt="a" * 32), 0)
    assert desk.ask(ask(attempt="a" * 32), REPEAT_SECONDS + 1).outcome is Outcome.PENDING


def test_without_an_attempt_nothing_is_given_twice() -> None:
    desk = make_desk()
    desk.open(0, 600)
    desk.ask(ask(), 0)
    assert desk.ask(ask(), 1).outcome is Outcome.PENDING


def test_a_grant_that_could_not_be_stored_opens_the_window_again() -> None:
    desk = make_desk()
    desk.open(0, 600)
    first = desk.ask(ask(attempt="a" * 32), 10)
    assert first.grant is not None
    desk.failed(first.grant, 11)
    assert desk.open_for(11) == 589
    assert desk.ask(ask("pin-2"), 12).outcome is Outcome.GRANTED


@pytest.mark.parametrize("closes", [True, False])
def test_a_failed_grant_does_not_undo_what_a_person_decided_meanwhile(closes: bool) -> None:
    desk = make_desk()
    desk.open(0, 600)
    first = desk.ask(ask(), 10)
    assert first.grant is not None
    if closes:
        desk.close()
    else:
        desk.open(11, 60)
    desk.failed(first.grant, 12)
    assert desk.open_for(12) == (0 if closes else 59)


def test_an_approval_survives_a_failed_write() -> None:
    desk = make_desk()
    nonce = desk.ask(ask(), 0).nonce
    desk.approve("pin-1", 1)
    granted = desk.ask(ask(nonce=nonce), 2)
    assert granted.grant is not None
    desk.failed(granted.grant, 3)
    assert desk.ask(ask(nonce=nonce), 4).outcome is Outcome.GRANTED
    assert desk.ask(ask(nonce=nonce), 5).outcome is Outcome.BAD_NONCE


@pytest.mark.parametrize("attempt", ["", "a" * 32])
def test_an_approval_survives_a_device_that_hangs_up_and_is_good_for_one_answer(attempt: str) -> None:
    desk = make_desk()
    nonce = desk.ask(ask(attempt=attempt), 0).nonce
    desk.approve("pin-1", 1)
    granted = desk.ask(ask(nonce=nonce, attempt=attempt), 2)
    assert granted.grant is not None
    desk.unheard(granted.grant, 3)
    desk.failed(granted.grant, 3)
    assert desk.ask(ask(nonce=nonce, attempt=attempt), 4).outcome is Outcome.GRANTED
    desk.used("pin-1")
    assert desk.ask(ask(nonce=nonce, attempt=attempt), 5).outcome is Outcome.BAD_NONCE


def test_an_approval_survives_asking_again_without_the_nonce() -> None:
    """The device did not hear its nonce: by its attempt it is known, and nobody else is."""
    desk = make_desk()
    desk.ask(ask(attempt="a" * 32), 0)
    desk.approve("pin-1", 1)
    for other in (ask(), ask(attempt="b" * 32), ask(attempt="a" * 32, address=AWAY)):
        assert desk.ask(other, 2).outcome is Outcome.PENDING
    assert desk.ask(ask(attempt="a" * 32), 3).outcome is Outcome.GRANTED


def test_an_approval_is_not_destroyed_by_somebody_who_asks_under_the_same_id() -> None:
    desk = make_desk()
    nonce = desk.ask(ask(), 0).nonce
    desk.approve("pin-1", 1)
    assert desk.ask(ask(), 2).outcome is Outcome.PENDING
    assert desk.ask(ask(nonce=nonce), 3).outcome is Outcome.GRANTED


def test_a_request_whose_answer_was_lost_stays_the_same_request() -> None:
    desk = make_desk()
    first = desk.ask(ask(attempt="a" * 32), 0).nonce
    shown = desk.pending(0)
    second = desk.ask(ask(attempt="a" * 32), 1).nonce
    assert desk.pending(1) == shown
    assert desk.ask(ask(nonce=first), 2).outcome is Outcome.BAD_NONCE
    assert desk.ask(ask(nonce=second), 2).outcome is Outcome.PENDING


def test_decided_requests_take_nobodys_place() -> None:
    desk = make_desk()
    for n in range(MOST_DECIDED + MOST_PENDING):
        assert desk.ask(ask(f"pin-{n}"), n / 100).outcome is Outcome.PENDING
        (desk.deny if n % 2 else desk.approve)(f"pin-{n}", n / 100)
    assert len(desk._requests) == MOST_DECIDED


def test_asking_on_does_not_make_denying_last() -> None:
    desk = make_desk()
    nonce = desk.ask(ask(), 0).nonce
    desk.deny("pin-1", 100)
    for now in range(110, 100 + int(PENDING_SECONDS), 10):
        assert desk.ask(ask(nonce=nonce), now).outcome is Outcome.DENIED
        assert desk.ask(ask(), now).outcome is Outcome.DENIED
    assert desk.ask(ask(), 101 + PENDING_SECONDS).outcome is Outcome.PENDING


def test_one_network_of_ipv6_cannot_fill_the_list() -> None:
    desk = make_desk()
    outcomes = [desk.ask(ask(f"flood-{n}", address=f"2001:db8::{n:x}"), 0).outcome for n in range(50)]
    assert outcomes.count(Outcome.PENDING) == MOST_PENDING_PER_ADDRESS
    assert desk.ask(ask("pin-1", address="2001:db8:0:1::1"), 0).outcome is Outcome.PENDING


def test_two_devices_may_lose_their_answers_at_the_same_time() -> None:
    desk = make_desk()
    for n, device in enumerate(("pin-1", "pin-2")):
        desk.open(n, 600)
        assert desk.ask(ask(device, attempt=device * 8), n).outcome is Outcome.GRANTED
    for device in ("pin-1", "pin-2"):
        assert desk.ask(ask(device, attempt=device * 8), 5).outcome is Outcome.GRANTED


def test_a_request_does_not_show_its_nonce() -> None:
    desk = make_desk()
    nonce = desk.ask(ask(), 0).nonce
    assert nonce not in repr(desk.pending(0))


STEPS = st.lists(st.tuples(
    st.sampled_from(["ask", "poll", "open", "close", "approve", "deny"]),
    st.sampled_from(["pin-1", "pin-2", "pin-3"]), st.floats(0, 400)), max_size=60)


@given(STEPS)
def test_whatever_happens_nobody_gets_in_uninvited(steps: list[tuple[str, str, float]]) -> None:
    """Every grant is paid for by an opening of the window or an approval of that device, and each pays once."""
    desk, now, windows, approvals = make_desk(), 0.0, 0, dict.fromkeys(["pin-1", "pin-2", "pin-3"], 0)
    nonces: dict[str, str] = {}
    for action, device, pause in steps:
        now += pause
        if action in {"ask", "poll"}:
            answer = desk.ask(ask(device, nonce=nonces.get(device, "") if action == "poll" else ""), now)
            if answer.outcome is Outcome.PENDING:
                nonces[device] = answer.nonce
            if answer.outcome is Outcome.GRANTED:
                if approvals[device] and action == "poll":
                    approvals[device] -= 1
                else:
                    assert windows == 1
                    windows = 0
            assert len(desk.pending(now)) <= MOST_PENDING
        elif action == "open":
            desk.open(now, 500)
            windows = 1
        elif action == "close":
            desk.close()
            windows = 0
        else:
            try:
                (desk.approve if action == "approve" else desk.deny)(device, now)
            except DeviceError:
                continue
            approvals[device] += action == "approve"
        if desk.open_for(now) == 0:
            windows = 0
