"""Other ways to the daemon on a home network: with a certificate from the announcement, and over IPv6 alone."""

from __future__ import annotations

import hashlib
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hotpind.pin.memory import load_memory
from tests.appliance.harness import Daemon
from tests.appliance.strangers import PAIRED
from tests.discovery.conftest import Watcher
from tests.lan import APPLIANCE_IP, Lan
from tests.lan import lan as make_lan

pytestmark = [pytest.mark.netns, pytest.mark.slow]

REACH_S = 40
APPLIANCE_V6, WEARABLE_V6 = "fd98:51:100::10", "fd98:51:100::20"


@dataclass
class Home:
    """A network with a daemon that has TLS on."""

    lan: Lan
    daemon: Daemon
    folder: Path

    def announced(self) -> dict[str, Any]:
        """What a stranger hears of the daemon."""
        process = self.lan.start("wear", [sys.executable, "-m", "tests.discovery.stranger", "watch"])
        try:
            return Watcher(process).wait(lambda event: event["change"] == "Added", 40)
        finally:
            self.lan.stop(process)

    def reach(self, session: str) -> subprocess.CompletedProcess[str]:
        """Let a pin find the daemon and connect, with nothing but its name."""
        return self.lan.run("wear", [sys.executable, "-m", "tests.pin.reaching", session,
                                     str(self.folder / f"{session}.json"), "--seconds", str(REACH_S)],
                            timeout=REACH_S + 20, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("home")
    with make_lan() as lan:
        for role, address in (("appl", APPLIANCE_V6), ("wear", WEARABLE_V6)):
            lan.ip(role, "addr", "add", f"{address}/64", "dev", "wlan0", "nodad")
        daemon = Daemon(PAIRED | {"SERVER__HOST": "", "DISCOVERY__ENABLED": "true", "TLS__ENABLED": "true",
                                  "TLS__PORT": "0"}, prefix=lan.prefix("appl"))
        try:
            yield Home(lan, daemon, folder)
        finally:
            status = daemon.stop()
        assert status == 0, daemon.log
        assert "Traceback" not in daemon.log


def certificate(home: Home) -> str:
    """The fingerprint of the daemon's certificate, from the file."""
    text = (home.daemon.root / "state" / "tls-certificate.pem").read_text()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest()


def test_the_announcement_leads_to_an_encrypted_connection(home: Home) -> None:
    heard = home.announced()
    assert int(heard["txt"]["tls"]) == home.daemon.status()["tls_port"]
    assert heard["txt"]["fp"] == certificate(home)
    done = home.reach("pin-tls")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["base"] == f"https://{APPLIANCE_IP}:{heard['txt']['tls']}/"
    assert "http://" not in done.stderr, "it paired over the encrypted port as well"
    memory = load_memory(home.folder / "pin-tls.json")
    assert memory.fingerprint == heard["txt"]["fp"]
    assert memory.token
    again = home.reach("pin-tls")
    assert (again.returncode, again.stderr) == (0, ""), "the second time the memory is enough"


def test_a_home_with_ipv6_alone_will_do(home: Home) -> None:
    """The addresses are unique local ones (RFC 4193), as a router at home gives them."""
    home.daemon.call("POST", "/api/v1/pairing", b'{"minutes": 2}')
    for role, address in (("appl", APPLIANCE_IP), ("wear", "198.51.100.20")):
        home.lan.remove_address(role, address)
    try:
        heard = home.announced()
        while APPLIANCE_IP in heard["addresses"]:
            heard = home.announced()
        assert APPLIANCE_V6 in heard["addresses"]
        done = home.reach("pin-v6")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["base"] == f"https://[{APPLIANCE_V6}]:{heard['txt']['tls']}/"
    finally:
        home.lan.add_address("appl", APPLIANCE_IP)
        home.lan.add_address("wear", "198.51.100.20")
    assert "pin-v6" in {each["device_id"] for each in home.daemon.call("GET", "/api/v1/devices")["devices"]}
