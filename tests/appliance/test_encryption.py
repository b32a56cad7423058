"""The encrypted port of the whole daemon: pinned by its fingerprint, required, with one's own certificate, attacked."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from hotpind.errors import PinError, PinOfflineError
from hotpind.pin.client import Pin
from hotpind.pin.home import Wishes, reach
from hotpind.pin.memory import load_memory
from tests.appliance.harness import Daemon, running
from tests.appliance.pins import assert_conforming
from tests.appliance.recordings import DATA, cards
from tests.appliance.strangers import PAIRED, PIN, ask, pair, stranger
from tests.waiting import until

CARD = cards()[0].pcm
ENCRYPTED = PAIRED | {"TLS__ENABLED": "true", "TLS__PORT": "0"}
HALF_OPEN = 600
LET_IN_S = 5.0
"""For the device to connect. Kept out, it would wait for the strangers' deadlines."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(ENCRYPTED) as made:
        yield made


def encrypted(daemon: Daemon) -> URL:
    return URL(daemon.url).with_scheme("https").with_port(daemon.status()["tls_port"])


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=20)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    files = folder / f"{name}.pem", folder / f"{name}.key"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-days", "2", "-out", files[0], "-keyout", files[1])
    return files


async def test_a_pin_pairs_and_goes_on_encrypted_with_the_right_certificate(daemon: Daemon, tmp_path: Path) -> None:
    memory = tmp_path / "pin.json"
    async with await reach(Wishes(PIN, memory, url=daemon.url)) as pin:
        assert pin.base == encrypted(daemon).with_path("/")
        turn = await pin.ask(CARD, realtime=False)
    assert turn.answered, turn.error
    assert_conforming(turn)
    known = load_memory(memory)
    served = ssl.get_server_certificate(("127.0.0.1", encrypted(daemon).port or 0))
    assert known.fingerprint == hashlib.sha256(ssl.PEM_cert_to_DER_cert(served)).hexdigest()
    for wrong in (aiohttp.Fingerprint(hashlib.sha256(b"another").digest()), True):
        with pytest.raises(PinError, match="certificate"):
            await Pin(str(encrypted(daemon)), PIN, token=known.token, ssl=wrong).connect()
    async with aiohttp.ClientSession() as http:
        status, _, answer = await ask(http, "GET", str(encrypted(daemon) / "health"),
                                      ssl=aiohttp.Fingerprint(bytes.fromhex(known.fingerprint)))
    assert (status, answer["service"]) == (200, "hotpin")


async def test_half_open_handshakes_do_not_keep_the_device_out(daemon: Daemon, tmp_path: Path) -> None:
    token = daemon.ctl("devices", "add", "pin-2").stdout.strip()
    fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(
        (daemon.root / "state" / "tls-certificate.pem").read_text())).digest()
    port = encrypted(daemon).port
    before = daemon.main.num_fds()
    writers = []
    try:
        for number in range(HALF_OPEN):
            _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.8.{number % 3}", 0))
            writer.write(b"\x16\x03\x01" if number % 2 else b"")
            writers.append(writer)
        await asyncio.sleep(1.2)
        began = time.monotonic()
        async with Pin(str(encrypted(daemon)), "pin-2", token=token, ssl=aiohttp.Fingerprint(fingerprint)):
            took = time.monotonic() - began
            await until(lambda: daemon.main.num_fds() - before < HALF_OPEN / 2, 15,
                        lambda: f"{daemon.main.num_fds() - before} connections are held")
            held = daemon.main.num_fds() - before
        print(f"the device was in after {took * 1000:.0f} ms beside {held} half-open handshakes")
        assert took < LET_IN_S
    finally:
        for writer in writers:
            writer.close()


async def test_where_encryption_is_required_plain_is_refused_and_all_else_works(tmp_path: Path) -> None:
    def start() -> Daemon:
        return Daemon(ENCRYPTED | {"TLS__REQUIRED": "true"})

    daemon = await asyncio.to_thread(start)
    try:
        status = daemon.status()
        safe = URL(daemon.url)
        assert (safe.scheme, safe.port) == ("https", status["tls_port"])
        (listening,) = {each.laddr.port for each in daemon.main.net_connections("tcp") if each.status == "LISTEN"} \
            - {status["tls_port"]}
        unsafe = f"http://127.0.0.1:{listening}"
        async with stranger(1) as http:
            for method, path in (("POST", "/pair"), ("GET", "/ws"), ("POST", "/image"), ("GET", "/api/v1/status"),
                                 ("GET", "/")):
                code, headers, answer = await ask(http, method, unsafe + path)
                assert (code, headers["Upgrade"]) == (426, "TLS/1.2")
                assert "TLS" in answer["message"]
            assert (await ask(http, "GET", unsafe + "/health"))[0] == 200
        with pytest.raises(PinOfflineError):
            await Pin(unsafe, PIN, token="x").connect()
        wishes = Wishes(PIN, tmp_path / "pin.json", url=str(safe), fingerprint=hashlib.sha256(ssl.PEM_cert_to_DER_cert(
            (daemon.root / "state" / "tls-certificate.pem").read_text())).hexdigest())
        async with await reach(wishes) as pin:
            assert (await pin.ask(CARD, realtime=False)).answered
        asked = await asyncio.to_thread(daemon.ctl, "ask", "--wav", str(DATA / "cards" / "001.wav"), "--fast")
        assert "Answer" in asked.stdout, "the box itself asks as a guest"
    finally:
        assert await asyncio.to_thread(daemon.stop) == 0
    assert "Traceback" not in daemon.log


async def test_the_self_test_works_where_encryption_is_required(tmp_path: Path) -> None:
    daemon = Daemon(ENCRYPTED | {"TLS__REQUIRED": "true"}, wait=False)
    daemon.stop()
    result = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "hotpind", "--config", str(daemon.config), "--once", env=daemon.environ,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(240):
        output, _ = await result.communicate()
    assert result.returncode == 0, output.decode()
    assert "ready" in output.decode()


def test_the_users_own_certificate_is_shown(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "hotpin.example")
    with running(ENCRYPTED | {"TLS__CERTIFICATE": str(chain), "TLS__KEY": str(key)}) as daemon:
        served = ssl.get_server_certificate(("127.0.0.1", encrypted(daemon).port or 0))
        assert served.split() == chain.read_text().split()
        _, answer = asyncio.run(pair(daemon, PIN))
        assert answer["fp"] == hashlib.sha256(ssl.PEM_cert_to_DER_cert(served)).hexdigest()
        assert answer["tls_port"] == encrypted(daemon).port
        assert not (daemon.root / "state" / "tls-key.pem").exists()


def test_a_certificate_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "one")
    _, other = certificate(tmp_path, "two")
    locked, empty = tmp_path / "locked.key", tmp_path / "empty.pem"
    openssl("pkey", "-in", key, "-aes128", "-passout", "pass:secret", "-out", locked)
    empty.write_text("")
    for files, reason in (((chain, other), "the key belongs to another certificate"), ((chain, locked), "passphrase"),
                          ((tmp_path / "none.pem", key), "No such file"), ((empty, key), "they hold no such thing")):
        daemon = Daemon(ENCRYPTED | {"TLS__CERTIFICATE": str(files[0]), "TLS__KEY": str(files[1])}, wait=False)
        assert daemon.process.wait(90) == 78, files
        daemon.wait_for_output()
        (sentence,) = [line for line in daemon.lines if "window" not in line and "No device is paired" not in line]
        assert sentence.startswith(f"hotpind: tls.certificate {files[0]} and tls.key {files[1]} cannot be used (")
        assert reason in sentence


def test_required_without_encryption_is_a_contradiction_that_is_told(tmp_path: Path) -> None:
    daemon = Daemon({"TLS__REQUIRED": "true"}, wait=False)
    assert daemon.process.wait(90) == 78
    daemon.wait_for_output()
    assert len(daemon.lines) == 1
    assert "required refuses every device unless enabled is true as well" in daemon.log
