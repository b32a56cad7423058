"""The encrypted port's certificate."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import logging
import ssl
import stat
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509

from hotpind.errors import ConfigError, StateError
from hotpind.web import limits
from hotpind.web.limits import ConnectionGuard, GuardedSite
from hotpind.web.replies import reply
from hotpind.web.tls import CERTIFICATE_FILE, KEY_FILE, TlsIdentity, load_tls

HOST = "hotpin-0123456789ab.local"


async def serve(identity: TlsIdentity) -> tuple[web.AppRunner, GuardedSite]:
    async def health(request: web.Request) -> web.Response:
        return reply({"service": "hotpin", "secure": request.secure})

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = GuardedSite(runner, ConnectionGuard(), "127.0.0.1", 0, ssl_context=identity.context)
    await site.start()
    return runner, site


async def test_a_client_that_knows_the_fingerprint_is_served(tmp_path: Path) -> None:
    identity = await load_tls(tmp_path, HOST)
    runner, site = await serve(identity)
    async with aiohttp.ClientSession() as http:
        pin = aiohttp.Fingerprint(bytes.fromhex(identity.fingerprint))
        async with http.get(f"https://127.0.0.1:{site.port}/health", ssl=pin) as response:
            assert await response.json() == {"service": "hotpin", "secure": True}
        wrong = aiohttp.Fingerprint(hashlib.sha256(b"another").digest())
        with pytest.raises(aiohttp.ServerFingerprintMismatch):
            await http.get(f"https://127.0.0.1:{site.port}/health", ssl=wrong)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await http.get(f"https://127.0.0.1:{site.port}/health")
    await runner.cleanup()


async def test_a_client_that_trusts_the_certificate_is_served_by_name(tmp_path: Path) -> None:
    identity = await load_tls(tmp_path, HOST)
    runner, site = await serve(identity)
    trust = ssl.create_default_context(cafile=tmp_path / CERTIFICATE_FILE)
    async with aiohttp.ClientSession() as http, http.get(f"https://127.0.0.1:{site.port}/health", ssl=trust,
                                                         server_hostname=HOST) as response:
        assert response.status == 200
    await runner.cleanup()


async def test_old_tls_is_refused(tmp_path: Path) -> None:
    identity = await load_tls(tmp_path, HOST)
    runner, site = await serve(identity)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection("127.0.0.1", site.port, ssl=old)
    await runner.cleanup()


async def test_a_handshake_that_does_not_go_on_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_SECONDS", 0.3)
    runner, site = await serve(await load_tls(tmp_path, HOST))
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"\x16\x03\x01")
    async with asyncio.timeout(2):
        assert await reader.read() == b""
    writer.close()
    await runner.cleanup()


async def test_it_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    first, second = await load_tls(tmp_path, HOST), await load_tls(tmp_path, HOST)
    assert first.fingerprint == second.fingerprint
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


async def test_what_is_in_it(tmp_path: Path) -> None:
    await load_tls(tmp_path, HOST)
    made = x509.load_pem_x509_certificate((tmp_path / CERTIFICATE_FILE).read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert HOST in names.get_values_for_type(x509.DNSName)
    assert made.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=3600)


async def test_a_clock_of_1970_makes_a_certificate_that_is_good_today(tmp_path: Path) -> None:
    await load_tls(tmp_path, HOST, clock=lambda: 300.0)
    made = x509.load_pem_x509_certificate((tmp_path / CERTIFICATE_FILE).read_bytes())
    assert made.not_valid_before_utc <= dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    assert made.not_valid_after_utc >= dt.datetime(2033, 12, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("name", [CERTIFICATE_FILE, KEY_FILE])
async def test_a_broken_file_is_made_anew_with_a_warning(
        tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    first = await load_tls(tmp_path, HOST)
    (tmp_path / name).write_text("not PEM")
    with caplog.at_level(logging.WARNING):
        second = await load_tls(tmp_path, HOST)
    assert first.fingerprint != second.fingerprint
    assert "fingerprint" in caplog.text


async def test_a_power_cut_between_the_files_is_made_good(tmp_path: Path) -> None:
    await load_tls(tmp_path, HOST)
    (tmp_path / CERTIFICATE_FILE).unlink()
    assert len((await load_tls(tmp_path, HOST)).fingerprint) == 64


async def test_the_users_own_certificate_is_used(tmp_path: Path) -> None:
    await load_tls(tmp_path / "made", "example.org")
    own = await load_tls(tmp_path / "state", HOST, certificate=str(tmp_path / "made" / CERTIFICATE_FILE),
                         key=str(tmp_path / "made" / KEY_FILE))
    pem = (tmp_path / "made" / CERTIFICATE_FILE).read_text()
    assert own.fingerprint == hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    assert not (tmp_path / "state").exists()


async def test_a_bad_certificate_of_the_users_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.certificate /nowhere"):
        await load_tls(tmp_path, HOST, certificate="/nowhere/cert.pem", key="/nowhere/key.pem")


async def test_an_unusable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StateError, match="state"):
        await load_tls(tmp_path / "state", HOST)
