"""Names and TXT keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotpind.discovery.records import LONGEST_KEY, Service, instance_name, numbered

FULL = Service("0123456789ab", "hotpin-0123456789ab.local", "Hotpin", 8000, "1.2.3", "paired", tls_port=8443,
               fingerprint="ab" * 32)


def test_the_txt_record() -> None:
    record = FULL.txt(pairing_open=True)
    assert record == {"txtvers": "1", "id": "0123456789ab", "ver": "1.2.3", "proto": "1", "path": "/ws",
                      "img": "/image", "auth": "paired", "pair": "open", "tls": "8443", "fp": "ab" * 32}
    assert next(iter(record)) == "txtvers", "RFC 6763, 6.7: the version comes first"
    assert all(len(key) <= LONGEST_KEY for key in record)
    assert sum(len(key) + len(value) + 2 for key, value in record.items()) < 400, "one small packet"


@pytest.mark.parametrize(("name", "room", "announced"), [
    ("Hotpin", "", "Hotpin"), ("Hotpin", "Kitchen", "Hotpin Kitchen"), ("  Hotpin ", " Bad ", "Hotpin Bad"),
    ("v1.2", "", "v1 2"), ("...", "", "Hotpin"), ("a\nb\x00c", "", "a b c"), ("Küche ☕", "", "Küche ☕")])
def test_the_instance_name(name: str, room: str, announced: str) -> None:
    assert instance_name(name, room) == announced


@given(st.text(min_size=1, max_size=40), st.text(max_size=20))
def test_any_name_makes_one_label(name: str, room: str) -> None:
    label = numbered(instance_name(name, room), 99)
    assert 1 <= len(label.encode()) <= 63
    assert "." not in label
    assert label.isprintable()


def test_a_taken_name_is_numbered() -> None:
    assert [numbered("Hotpin", n) for n in (1, 2, 3)] == ["Hotpin", "Hotpin-2", "Hotpin-3"]
