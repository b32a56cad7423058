"""The certificate of the encrypted port: the user's own, or one made at first start.

A self-signed one is known by its fingerprint, which is announced and told to devices when they pair.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import ipaddress
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotpind.errors import ConfigError, StateError
from hotpind.files import write_durably

CERTIFICATE_FILE = "tls-certificate.pem"
KEY_FILE = "tls-key.pem"
YEARS = 10

_LOGGER = logging.getLogger(__name__)
_EARLIEST = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
"""Every certificate is valid from here on: a board without a battery-backed clock starts in 1970."""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """What the encrypted port shows."""

    context: ssl.SSLContext
    fingerprint: str
    """SHA-256 of the certificate (DER), 64 lower-case hexadecimal digits; pins compare it."""


async def load_tls(state: Path, host_name: str, *, certificate: str = "", key: str = "",
                   clock: Callable[[], float] = time.time) -> TlsIdentity:
    """Load the certificate, making a self-signed one in ``state`` when the user has none.

    Raises `ConfigError` for a bad certificate of the user's, `StateError` when ours cannot be stored.
    """
    return await asyncio.to_thread(_load, state, host_name, certificate, key, clock)


def _load(state: Path, host_name: str, certificate: str, key: str, clock: Callable[[], float]) -> TlsIdentity:
    if certificate:
        try:
            return _identity(Path(certificate).expanduser(), Path(key).expanduser())
        except (OSError, ValueError) as error:
            raise ConfigError(f"tls.certificate {certificate} and tls.key {key} cannot be used ({_words(error)}); "
                              "both have to be PEM files that the hotpin user can read") from None
    files = state / CERTIFICATE_FILE, state / KEY_FILE
    try:
        if all(file.exists() for file in files):
            try:
                return _identity(*files)
            except (OSError, ValueError) as error:
                _LOGGER.warning("%s: cannot be used (%s), a new certificate is made; pins that remember its "
                                "fingerprint have to be paired again", files[0], _words(error))
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(*files, host_name, dt.datetime.fromtimestamp(clock(), dt.UTC))
        return _identity(*files)
    except (OSError, ValueError) as error:
        raise StateError(f"{files[0]}: the certificate cannot be made ({_words(error)}); "
                         "check the state directory's owner, mode and free space") from None


def _identity(certificate: Path, key: Path) -> TlsIdentity:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password=_no_passphrase)
    pem = certificate.read_text(encoding="ascii")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = pem[pem.index(begin):pem.index(end) + len(end)]
    return TlsIdentity(context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest())


def _no_passphrase() -> str:
    """Stand in the way of OpenSSL, which would ask for the passphrase on the terminal and wait for ever."""
    raise ValueError("the key is locked with a passphrase")


def _words(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return {"KEY_VALUES_MISMATCH": "the key belongs to another certificate",
                "KEY_TYPE_MISMATCH": "the key belongs to another certificate",
                "EE_KEY_TOO_SMALL": "the key is too short to be safe"}.get(error.reason, "they hold no such thing")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _make(certificate: Path, key: Path, host_name: str, now: dt.datetime) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    # P-256 is what mbedTLS on an ESP32 verifies fastest.
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host_name)])
    names = [x509.DNSName(host_name), x509.DNSName("localhost"),
             x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_EARLIEST)
        .not_valid_after(max(now, _EARLIEST) + dt.timedelta(days=366 * YEARS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    # The key first: a certificate without its key is what a power cut would leave, and is then made again.
    write_durably(key, private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                             serialization.NoEncryption()), 0o600)
    write_durably(certificate, built.public_bytes(serialization.Encoding.PEM), 0o644)
