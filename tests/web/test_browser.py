"""A page of another site in a real browser: it may load, and nothing that it tries on the appliance gets through.

Debian package: chromium.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.web.conftest import ADMIN_SECRET, Doors

CHROMIUM = shutil.which("chromium")
LOAD_S = 90.0
REBOUND = "rebound.example"
"""A name of the attacker's that points at the appliance (DNS rebinding)."""

PAGE = """<!doctype html><title>evil</title><pre id="results"></pre>
<iframe name="sink" srcdoc=""></iframe>
<script>
const plain = %(plain)s, rebound = %(rebound)s, results = {};
function within(promise) {
    return Promise.race([promise, new Promise(resolve => setTimeout(() => resolve("no answer"), 8000))]);
}
async function attempt(name, work) {
    try { results[name] = await within(work()); } catch (error) { results[name] = "failed"; }
}
function socket(url) {
    return new Promise(resolve => {
        const ws = new WebSocket(url);
        ws.onopen = () => resolve("opened");
        ws.onerror = () => resolve("refused");
    });
}
function post(url) {
    return new Promise(resolve => {
        const form = document.createElement("form");
        Object.assign(form, {method: "POST", action: url, target: "sink", enctype: "text/plain"});
        const field = document.createElement("input");
        Object.assign(field, {name: '{"device_id": "by-form", "name": "', value: '"}'});
        form.append(field);
        document.body.append(form);
        document.querySelector("iframe").onload = () => resolve("sent");
        form.submit();
    });
}
const body = name => ({method: "POST", mode: "no-cors", body: JSON.stringify({device_id: name})});
(async () => {
    await attempt("control", async () => (await fetch("/mine")).text());
    await attempt("no-cors", async () => (await fetch(plain + "/pair", body("by-fetch"))).type);
    await attempt("read", async () => (await fetch(plain + "/health")).text());
    await attempt("form", () => post(plain + "/pair"));
    await attempt("websocket", () => socket(plain.replace("http", "ws") + "/ws"));
    await attempt("rebound", async () => (await fetch(rebound + "/pair", body("by-rebinding"))).type);
    await attempt("rebound websocket", () => socket(rebound.replace("http", "ws") + "/ws"));
    document.getElementById("results").textContent = JSON.stringify(results);
    await fetch("/done", {method: "POST"});
    // The page counts as loaded, and is printed, once this has come.
})();
</script><img src="/when-done">
"""


class Site:
    """The attacker's own server, which the page comes from."""

    def __init__(self) -> None:
        self.page = ""
        self.done = asyncio.Event()
        self.url = ""

    async def get(self, _: web.Request) -> web.Response:
        return web.Response(text=self.page, content_type="text/html")

    async def mine(self, _: web.Request) -> web.Response:
        return web.Response(text="reached")

    async def finish(self, _: web.Request) -> web.Response:
        self.done.set()
        return web.Response()

    async def when_done(self, _: web.Request) -> web.Response:
        await asyncio.wait_for(self.done.wait(), LOAD_S)
        return web.Response(status=404)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    app = web.Application()
    app.add_routes([web.get("/", made.get), web.get("/mine", made.mine), web.post("/done", made.finish),
                    web.get("/when-done", made.when_done)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def load(url: str, folder: Path) -> str:
    """Open a page in the browser and return its document once it has loaded."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
        "--no-proxy-server", f"--user-data-dir={folder}",
        f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--timeout={round(LOAD_S * 1000)}", "--dump-dom", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(LOAD_S + 30):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="not installed: chromium")
async def test_a_page_of_another_site_gets_nothing_done(doors: Doors, site: Site, tmp_path: Path) -> None:
    """While the pairing window is open, so that any request to pair that came through would be granted."""
    assert doors.pairing.is_open
    asked: list[tuple[str, str, int]] = []

    def note(request: web.Request, status: int) -> None:
        if request.path != "/favicon.ico":
            asked.append((request.host.partition(":")[0], request.path, status))

    doors.answered = note
    site.page = PAGE % {"plain": json.dumps(doors.url), "rebound": json.dumps(f"http://{REBOUND}:{doors.port}")}
    document = await load(site.url + "/", tmp_path / "profile")
    found = re.search(r'<pre id="results">(.*?)</pre>', document)
    assert found is not None, document[:2000]
    results = json.loads(found[1].replace("&quot;", '"'))
    assert results["control"] == "reached"
    assert results["no-cors"] == "opaque", "it was sent and answered; the page may not know how"
    assert results["read"] == "failed"
    assert results["form"] == "sent"
    assert results["websocket"] == "refused"
    assert results["rebound websocket"] == "refused"
    assert doors.registry.devices() == ()
    assert doors.pairing.pending() == ()
    assert doors.pairing.is_open
    assert set(asked) == {("127.0.0.1", "/pair", 403), ("127.0.0.1", "/health", 403), ("127.0.0.1", "/ws", 403),
                          (REBOUND, "/pair", 421), (REBOUND, "/ws", 421)}, "the browser did try it all"
    assert "not known under this name" in await load(f"http://{REBOUND}:{doors.port}/health", tmp_path / "another")
    assert (await doors.ask("GET", "/api/v1/pairing", token=ADMIN_SECRET))[1]["open"]
    assert (await doors.pair("pin-1"))[0] == 200, "the control: without a page's headers the same request gets in"
