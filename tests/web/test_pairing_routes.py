"""``POST /pair`` and the administrator's API, as devices and people use them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from yarl import URL

from hotpind.devices.device import describe
from tests.web.conftest import ADMIN_SECRET, Doors, OpenDoors


async def admin(doors: Doors, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    return await doors.ask(method, f"/api/v1{path}", token=ADMIN_SECRET, json=body)


async def test_a_new_appliance_pairs_the_first_device(doors: Doors) -> None:
    status, answer = await doors.pair("esp32-cam-hotpin-001", name="Pin", model="esp32-cam", firmware="2.1")
    assert status == 200
    token = answer.pop("token")
    assert answer == {"status": "paired", "device_id": "esp32-cam-hotpin-001", "id": "0123456789ab",
                      "name": "Hotpin Test"}
    assert (await doors.ask("GET", "/whoami", token=token))[1]["device_id"] == "esp32-cam-hotpin-001"
    status, answer = await doors.pair("pin-2")
    assert (status, answer["status"]) == (202, "pending")


async def test_an_answer_with_a_token_is_not_stored_anywhere(doors: Doors) -> None:
    async with doors.http.post(f"{doors.url}/pair", json={"device_id": "pin-1"}) as response:
        assert response.headers["Cache-Control"] == "no-store"


async def test_a_person_lets_a_device_in(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    status, waiting = await doors.pair("pin-1", name="Pin")
    assert status == 202
    listed = (await admin(doors, "GET", "/devices"))[1]
    assert listed["devices"] == []
    assert [(each["device_id"], each["name"], each["address"]) for each in listed["pending"]] == [
        ("pin-1", "Pin", "127.0.0.1")]
    assert waiting["nonce"] not in str(listed)
    assert (await doors.pair("pin-1", nonce=waiting["nonce"]))[0] == 202
    assert (await admin(doors, "POST", "/pairing/pin-1/approve"))[0] == 200
    status, paired = await doors.pair("pin-1", nonce=waiting["nonce"])
    assert status == 200
    assert (await doors.ask("GET", "/whoami", token=paired["token"]))[0] == 200
    status, replayed = await doors.pair("pin-1", nonce=waiting["nonce"])
    assert (status, replayed["status"]) == (410, "expired")
    assert "token" not in replayed


async def test_a_person_turns_a_device_away(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    nonce = (await doors.pair("pin-1"))[1]["nonce"]
    request = (await admin(doors, "GET", "/pairing"))[1]["pending"][0]["request"]
    assert (await admin(doors, "POST", f"/pairing/{request}/deny"))[0] == 200
    status, answer = await doors.pair("pin-1", nonce=nonce)
    assert (status, answer["status"]) == (403, "denied")


async def test_a_person_opens_and_closes_the_window(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    status, answer = await admin(doors, "POST", "/pairing", {"minutes": 1.5})
    assert status == 200
    assert 89 < answer["seconds_left"] <= 90
    assert (await admin(doors, "DELETE", "/pairing"))[1]["open"] is False
    assert (await admin(doors, "POST", "/pairing"))[1]["seconds_left"] > 119
    assert (await doors.pair("pin-1"))[0] == 200
    state = (await admin(doors, "GET", "/pairing"))[1]
    assert (state["open"], state["paired"]) == (False, "pin-1")


@pytest.mark.parametrize("minutes", [0, -1, 61, "2", None, True, 1e400, [2]])
async def test_odd_times_are_refused(doors: Doors, minutes: Any) -> None:
    if minutes == 1e400:
        status, _ = await doors.ask("POST", "/api/v1/pairing", token=ADMIN_SECRET, data='{"minutes": 1e400}')
    else:
        status, _ = await admin(doors, "POST", "/pairing", {"minutes": minutes})
    assert status == 400


async def test_pairing_the_same_device_again_needs_a_window_and_replaces_its_token(doors: Doors) -> None:
    first = (await doors.pair("pin-1"))[1]["token"]
    assert (await doors.pair("pin-1"))[0] == 202
    assert (await doors.ask("GET", "/whoami", token=first))[0] == 200
    await admin(doors, "POST", "/pairing", {"minutes": 2})
    second = (await doors.pair("pin-1"))[1]["token"]
    assert (await doors.ask("GET", "/whoami", token=first))[0] == 401
    assert (await doors.ask("GET", "/whoami", token=second))[0] == 200
    assert len(doors.registry.devices()) == 1


async def test_a_lost_answer_can_be_asked_for_again(doors: Doors) -> None:
    await doors.pair("pin-1", attempt="0123456789abcdef")
    status, answer = await doors.pair("pin-1", attempt="0123456789abcdef")
    assert status == 200
    assert (await doors.ask("GET", "/whoami", token=answer["token"]))[0] == 200
    assert (await doors.pair("pin-1", attempt="0123456789abcdef"))[0] == 202, "it arrived, as the device used it"


async def test_a_device_added_by_a_person_ends_the_first_window(doors: Doors) -> None:
    assert (await admin(doors, "GET", "/pairing"))[1]["open"]
    assert (await admin(doors, "POST", "/devices", {"device_id": "old-pin"}))[0] == 201
    assert not (await admin(doors, "GET", "/pairing"))[1]["open"]
    assert (await doors.pair("stranger"))[0] == 202


async def test_two_devices_race_and_one_wins(doors: Doors) -> None:
    answers = await asyncio.gather(*(doors.pair(f"pin-{n}") for n in range(8)))
    assert [status for status, _ in answers].count(200) == 1
    assert len(doors.registry.devices()) == 1


async def test_devices_are_listed_renamed_revoked_and_added(doors: Doors) -> None:
    token = await doors.registry.add(describe("pin-1", "Pin", "esp32-cam", "2.1"))
    headers = {"Authorization": f"Bearer {token}"}
    async with doors.http.ws_connect(f"{doors.url}/ws", headers=headers) as socket:
        await socket.send_json({"session_id": "pin-1"})
        await socket.receive_json()
        (listed,) = (await admin(doors, "GET", "/devices"))[1]["devices"]
    assert {key: listed[key] for key in ("device_id", "name", "model", "firmware", "connected")} == {
        "device_id": "pin-1", "name": "Pin", "model": "esp32-cam", "firmware": "2.1", "connected": True}
    assert listed["last_seen"] >= listed["created"]
    assert (await admin(doors, "PATCH", "/devices/pin-1", {"name": "Kitchen"}))[0] == 200
    assert doors.registry.devices()[0].name == "Kitchen"
    again = await admin(doors, "POST", "/devices", {"device_id": "pin-1"})
    assert (again[0], again[1]["name"]) == (201, "Kitchen")
    await doors.registry.add(describe("pin-1", "Pin"))
    assert doors.registry.devices()[0].name == "Kitchen"
    assert (await admin(doors, "DELETE", "/devices/pin-1"))[0] == 200
    assert (await admin(doors, "DELETE", "/devices/pin-1"))[0] == 404
    status, added = await admin(doors, "POST", "/devices", {"device_id": "esp32-cam-hotpin-001"})
    assert status == 201
    assert (await doors.ask("GET", "/whoami", token=added["token"]))[1]["device_id"] == "esp32-cam-hotpin-001"


@pytest.mark.parametrize("path", ["/devices/..%2f..%2fetc%2fpasswd", "/devices/%00", "/devices/" + "a" * 3000,
                                  "/devices/../../etc/passwd", "/devices/pin-1/../../etc/passwd"])
async def test_odd_ids_in_paths_find_nothing(doors: Doors, path: str) -> None:
    await doors.registry.add(describe("pin-1"))
    # As it is written here: an HTTP client resolves the dots and unquotes what need not be quoted.
    url = URL(f"{doors.url}/api/v1{path}", encoded=True)
    async with doors.http.delete(url, headers={"Authorization": f"Bearer {ADMIN_SECRET}"}) as response:
        assert response.request_info.url.raw_path == f"/api/v1{path}"
        assert response.status in {400, 404}
    assert [device.id for device in doors.registry.devices()] == ["pin-1"]


async def test_a_pending_list_that_is_full_says_so(open_doors: OpenDoors) -> None:
    doors = await open_doors(first_window=0)
    statuses = [(await doors.pair(f"pin-{n}"))[0] for n in range(6)]
    assert statuses == [202] * 4 + [429] * 2


async def test_clock_of_1970_is_not_shown(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors.registry, "_clock", lambda: 100.0)
    await doors.registry.add(describe("pin-1"))
    (listed,) = (await admin(doors, "GET", "/devices"))[1]["devices"]
    assert (listed["created"], listed["last_seen"]) == (None, None)
