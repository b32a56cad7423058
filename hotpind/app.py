"""The composition root: builds every part from the configuration, wires them, and ends them in order. No logic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from hotpind import __version__
from hotpind.chat.chain import Chain
from hotpind.chat.lookup import LookupResolver, NameLookup
from hotpind.chat.messages import Picture
from hotpind.chat.readiness import Readiness
from hotpind.config import Config
from hotpind.config.changes import changed_keys, merged
from hotpind.config.paths import control_socket, make_private, models_dir, runtime_dir, state_dir
from hotpind.conversation.assistant import Assistant
from hotpind.conversation.memory import Memory
from hotpind.devices.identity import load_identity
from hotpind.devices.registry import DeviceRegistry
from hotpind.devices.service import PairingService
from hotpind.discovery.announcer import Announcer
from hotpind.discovery.network import NetworkWatch
from hotpind.discovery.records import Service, instance_name
from hotpind.engines.fleet import llama_spec, piper_spec, stop_all, whisper_spec
from hotpind.engines.local_model import LocalModel
from hotpind.engines.remote import RemoteServer
from hotpind.engines.supervisor import Engine, EngineSpec, EngineState
from hotpind.errors import OperatorError
from hotpind.models.catalogue import Role
from hotpind.models.hints import has_room
from hotpind.models.progress import Activity
from hotpind.models.store import ModelFiles, ModelStore
from hotpind.speech.endpoint import Endpoint, EngineEndpoint, RemoteEndpoint
from hotpind.speech.stt import Transcriber
from hotpind.speech.tts import Synthesizer
from hotpind.system.credential import PACKAGED_KEY, waits_for_restart
from hotpind.system.findings import clock_fault
from hotpind.system.machine import available_memory
from hotpind.system.sole import claim
from hotpind.wearable.hub import Hub
from hotpind.wearable.images import ImageIntake
from hotpind.web import admin_routes, api_routes, device_routes, guest_routes, pairing_routes
from hotpind.web.auth import Gatekeeper
from hotpind.web.hosts import host_middleware, own_names
from hotpind.web.limits import RUNNER_OPTIONS, ConnectionGuard, GuardedSite
from hotpind.web.metrics import Metrics
from hotpind.web.pairing_routes import ApplianceFacts
from hotpind.web.replies import errors_middleware, refusal
from hotpind.web.status import Status, log_turn
from hotpind.web.tls import TlsIdentity, load_tls

_LOG = logging.getLogger(__name__)

WORKER_THREADS = 3
DRAIN_S = 10.0
"""How long a turn under way may go on speaking when the appliance is stopped."""
CLOSE_S = 3.0
"""How long the registry may take to write what is outstanding: the rest of the unit's TimeoutStopSec belongs to the
answer under way and to the engines, and a card that is dying never ends."""
LOOKUP_S = 2.0
"""How long a request waits for the address of somebody else's speech server."""
REMOTE_PLACES = 4
"""Requests sent at once to somebody else's speech server; our own engines take one after the other."""


class Appliance:
    """All parts of the appliance; `build` makes them, `listen` opens the doors, `stop` ends everything."""

    config: Config
    assistant: Assistant
    chain: Chain
    hub: Hub
    status: Status
    gatekeeper: Gatekeeper
    local: LocalModel
    stt_engine: Engine | None = None
    tts_engine: Engine | None = None
    port: int = 0
    tls: TlsIdentity | None = None
    tls_port: int = 0
    needs_restart: list[str]

    def __init__(self, config: Config) -> None:
        """Take the settings; nothing runs yet."""
        self.config = config
        self.state = state_dir(config)
        self.runtime = runtime_dir(config)
        self.needs_restart = []
        self.reload_refused = ""
        """Why the last reload was refused; empty when it was not."""
        self.activity = Activity()
        self._workers = ThreadPoolExecutor(WORKER_THREADS, thread_name_prefix="work")
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[Any]] = []
        self._farewells: set[asyncio.Task[None]] = set()
        self._announcer: Announcer | None = None

    async def build(self) -> None:
        """Make every part and start the engines; when it fails nothing is left, and it can be tried again.

        Raises `OperatorError` for what a person has to mend.
        """
        try:
            await self._build()
        except BaseException:
            stack, self._stack = self._stack, contextlib.AsyncExitStack()
            await stack.aclose()
            raise

    async def _build(self) -> None:
        config = self.config
        await asyncio.to_thread(make_private, self.runtime)
        self._stack.callback(os.close, await asyncio.to_thread(claim, self.runtime))
        self.metrics = Metrics()
        self.identity = await asyncio.to_thread(load_identity, self.state)
        self.registry = await DeviceRegistry.open(self.state)
        self._stack.push_async_callback(within, CLOSE_S, self.registry.close, "the registry of devices")
        self.pairing = PairingService(self.registry, first_window_minutes=config.auth.first_window_minutes)
        self._stack.callback(self.pairing.close)
        self.gatekeeper = Gatekeeper(self.registry, mode=config.auth.mode, admin_secret=self.identity.admin_secret,
                                     on_device=self.pairing.used)
        if config.tls.enabled:
            self.tls = await load_tls(self.state, self.identity.host_name, certificate=config.tls.certificate,
                                      key=config.tls.key)
        self.store = await asyncio.to_thread(ModelStore, models_dir(config))
        self._make_engines()
        self._make_brain()
        self._make_assistant()
        self._make_web()
        for engine in self.engines:
            if engine is not self.local.engine:
                engine.start()
        for server in self.remotes:
            self._tasks.append(asyncio.create_task(server.watch(), name=f"watch {server.name}"))
        self._tasks.append(asyncio.create_task(self.assistant.keep_canned(), name="canned sentences"))
        self._tasks.append(asyncio.create_task(self.local.unload_when_idle(), name="unload the local model"))
        if config.chat.local.preload == "always":
            self.local.engine.start()

    def _make_engines(self) -> None:
        config, store = self.config, self.store

        def find(name: str, role: Role) -> ModelFiles:
            """Find a model, fetching one of the catalogue that is not there yet (the first start)."""
            if name in store.catalogue:
                with self.activity.of(name) as report:
                    store.ensure(name, report)
            return store.resolve(name, role)

        resolver = LookupResolver(NameLookup(), timeout_s=LOOKUP_S)
        self.engines: list[Engine] = []
        self.remotes = [RemoteServer(name, uri, resolver) for name, uri in (
            ("speech-to-text", config.stt.uri), ("text-to-speech", config.tts.uri)) if uri]

        def supervised(spec: EngineSpec, *models: str) -> Engine:
            engine = Engine(replace(spec, check=lambda: _verify(store, models)))
            self.engines.append(engine)
            return engine

        if not config.stt.uri:
            self.stt_engine = supervised(
                whisper_spec(config, self.runtime, lambda: find(config.stt.model, Role.STT).main), config.stt.model)
        if not config.tts.uri:
            self.tts_engine = supervised(
                piper_spec(config, self.runtime, lambda: find(config.tts.voice, Role.TTS).main), config.tts.voice)

        def llm_files() -> tuple[Path, Path | None]:
            files = find(config.chat.local.model, Role.LLM)
            if config.chat.local.mmproj:
                return files.main, find(config.chat.local.mmproj, Role.VISION_PROJECTOR).main
            return files.main, files.projector

        self.local = LocalModel(
            supervised(llama_spec(config, self.runtime, llm_files), config.chat.local.model, config.chat.local.mmproj),
            model=config.chat.local.model,
            sees_images=bool(config.chat.local.mmproj) or _has_eyes(store, config.chat.local.model),
            idle_s=config.chat.local.idle_unload_minutes * 60, may_unload=lambda: self.status.cloud == "online",
            has_room=lambda: has_room(store.catalogue, config.chat.local.model, config.chat.local.mmproj,
                                      available_memory()))

        def endpoint(engine: Engine | None, name: str, uri: str) -> Endpoint:
            return EngineEndpoint(engine) if engine is not None else RemoteEndpoint(name, uri, resolver)

        self.transcriber = Transcriber(
            endpoint(self.stt_engine, "speech-to-text", config.stt.uri), language=config.stt.language,
            deadline_s=config.stt.deadline_s, places=1 if self.stt_engine else REMOTE_PLACES)
        self.voice = Synthesizer(
            endpoint(self.tts_engine, "text-to-speech", config.tts.uri),
            deadline_s=config.tts.deadline_s, places=1 if self.tts_engine else REMOTE_PLACES)

    def _make_brain(self) -> None:
        self.chain = Chain.from_config(self.config.chat, state=self.state, local=self.local)

    def _make_assistant(self) -> None:
        self.assistant = Assistant(
            self.config, self.chain, self.transcriber, self.voice, self._workers,
            Memory(self.config.chat.history_turns), new_turn_id=lambda: secrets.token_hex(4))
        self.hub = Hub(self.assistant, self._may_use, self._condition)
        self.status = Status(
            engines=self.engines, servers=self.remotes, backends=self.chain.status,
            devices=lambda: list(self.hub.sessions), faults=self._faults, facts=self._facts,
            activity=lambda: str(self.activity),
            network=lambda: self._announcer is None or bool(self._announcer.interfaces))
        readiness = Readiness(self.chain, self.local, lambda: self.status.cloud == "online")
        self.assistant.on_expected, self.assistant.reads_ahead = readiness.expect, readiness.reads_ahead
        self.assistant.on_turn += [self.status.turn, self.metrics.turn, log_turn]
        if self.config.chat.local.preload != "need":
            self.assistant.on_ended = readiness.stand_by
        self.registry.on_token_ended(self._end_connection)
        self.registry.connected = lambda: list(self.hub.sessions)
        self.metrics.watch(
            devices=lambda: len(self.hub.sessions), turns_running=lambda: self.assistant.turns_running,
            queues={"stt": lambda: self.transcriber.queue.waiting, "llm": lambda: self.chain.waiting,
                    "tts": lambda: self.voice.queue.waiting},
            backends=self.chain.status, engines=self.engines, underruns=lambda: self.hub.underruns)

    def _make_web(self) -> None:
        names = own_names(self.identity.host_name)
        self.guard = ConnectionGuard()
        app = web.Application(middlewares=[
            self.guard.middleware, errors_middleware,
            host_middleware(lambda: names | {name.lower() for name in self.config.server.allowed_hosts},
                            tls_required=self.config.tls.required)])
        images = ImageIntake(lambda: self.config.limits, self._workers, self._may_use, self._keep_picture)
        app.router.add_get("/ws", self.hub.connect)
        app.router.add_post("/image", images.post)
        device_routes.add_routes(app, self.status.health, self._voices)
        pairing_routes.add_routes(app, self.pairing, self._pairing_facts)
        admin_routes.add_routes(app, self.gatekeeper, self.registry, self.pairing,
                                connected=lambda: list(self.hub.sessions))
        guest_routes.add_routes(app, self.gatekeeper, self.url, fingerprint=self.fingerprint,
                                ended=self._end_connection)
        api_routes.add_routes(app, self.gatekeeper, status=self.status.full, turns=self.status.turns_json,
                              metrics=self.metrics, transcriber=self.transcriber, voice=self.voice)
        self.runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=2.0,
                                    **RUNNER_OPTIONS)

    async def listen(self) -> None:
        """Open the control socket, the port and the announcement. Raises `OperatorError` for a port that is taken."""
        config = self.config
        if self.runner.server is None:
            await self.runner.setup()
            await self._listen_for_control()
        try:
            if not self.port:
                site = GuardedSite(self.runner, self.guard, config.server.host, config.server.port)
                await site.start()
                self.port = site.port
            if self.tls is not None and not self.tls_port:
                site = GuardedSite(self.runner, self.guard, config.server.host, config.tls.port,
                                   ssl_context=self.tls.context)
                await site.start()
                self.tls_port = site.port
        except OSError as error:
            wanted = f"tls.port {config.tls.port}" if self.port else f"server.port {config.server.port}"
            raise OperatorError(f"{wanted} cannot be used ({error.strerror or error}); stop what uses it, or choose "
                                "another in the settings") from None
        self._announce()
        await self.chain.start()
        # Only now it is known whether there is a key.
        if self.status.cloud == "local":
            self.local.engine.start()

    async def _listen_for_control(self) -> None:
        path = control_socket(self.config)
        await asyncio.to_thread(path.unlink, missing_ok=True)
        site = web.UnixSite(self.runner, str(path))
        await site.start()
        # Who may do what is decided by the peer's user id; others need not even connect.
        await asyncio.to_thread(path.chmod, 0o600)
        self._stack.callback(path.unlink, missing_ok=True)

    def _announce(self) -> None:
        self.watch = NetworkWatch()
        if self.config.discovery.enabled:
            discovery = self.config.discovery
            service = Service(self.identity.appliance_id, self.identity.host_name,
                              instance_name(discovery.name, discovery.room), self.port, __version__,
                              self.config.auth.mode, protocol="2", tls_port=self.tls_port,
                              fingerprint=self.fingerprint())
            announcer = self._announcer = Announcer(service, self.watch, interfaces=discovery.interfaces,
                                                    pairing_open=self.pairing.is_open)
            self.pairing.on_window_change(lambda is_open: announcer.update(pairing_open=is_open))
            announcer.start()
        self.watch.subscribe(lambda _: self.chain.interface_up())
        self.watch.start()

    async def reconfigure(self, config: Config) -> list[str]:
        """Apply the settings that can change while running; return the names of those that need a restart."""
        live, later = changed_keys(self.config, config)
        self.config = merged(self.config, config, live)
        self.assistant.config = self.config
        self.assistant.memory.keep_turns(self.config.chat.history_turns)
        self.transcriber.deadline_s = self.config.stt.deadline_s
        self.voice.deadline_s = self.config.tts.deadline_s
        self.local.idle_s = self.config.chat.local.idle_unload_minutes * 60
        self.chain.reconfigure(self.config.chat)
        self.chain.key_changed()
        if await asyncio.to_thread(waits_for_restart, PACKAGED_KEY, self.state):
            later.append(f"the key in {PACKAGED_KEY}")
        if live:
            _LOG.info("Applied: %s", ", ".join(live))
        if later:
            _LOG.warning("These settings changed, but need a restart: %s", ", ".join(later))
        self.needs_restart = later
        return later

    async def working(self) -> None:
        """Wait until STT and TTS work; what a person has to mend is waited for, and named in the status."""
        for engine in (self.stt_engine, self.tts_engine):
            if engine is not None:
                await engine.until_ready()
        for server in self.remotes:
            await server.until_answers()

    def speech_works(self) -> bool:
        """Tell whether the engines for speech answer (a liveness check replaces those that do not).

        Servers elsewhere do not count: a restart of this appliance does not bring them back.
        """
        return all(engine is None or engine.state is EngineState.READY for engine in (self.stt_engine, self.tts_engine))

    async def stop(self) -> None:
        """Let the turn under way finish, say goodbye, end everything; within 10 s of speaking plus 5."""
        if not hasattr(self, "runner"):
            await self._stack.aclose()
            return
        self.status.ready = False
        await self.assistant.drain(DRAIN_S)
        if self._announcer is not None:
            await self._announcer.close()
        if hasattr(self, "watch"):
            await self.watch.close()
        await self.hub.close()
        for task in [*self._tasks, *self._farewells]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._farewells, return_exceptions=True)
        await self.runner.cleanup()
        await self.chain.close()
        await self.local.close()
        await stop_all(self.engines)
        await self._stack.aclose()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def url(self) -> str:
        """Return the address for people and for pins on this machine; the encrypted one where plain is refused."""
        host = self.config.server.host
        scheme, port = ("https", self.tls_port) if self.tls and self.config.tls.required else ("http", self.port)
        if host in {"", "0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            host = "127.0.0.1"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def fingerprint(self) -> str:
        """Return the certificate's fingerprint; empty without TLS."""
        return self.tls.fingerprint if self.tls else ""

    async def _may_use(self, request: web.Request, session_id: str) -> None:
        grant = await self.gatekeeper.device(request)
        if session_id and not grant.may_use(session_id):
            raise refusal(403, "A device may only use its own session id.")

    def _keep_picture(self, session_id: str, picture: Picture) -> None:
        now = self.assistant.clock()
        self.assistant.conversation(session_id).keep_picture(
            picture, now + self.config.limits.image_keep_minutes * 60)
        if session_id in self.hub.sessions:
            # The pin shows while its wearer asks: what can be done with a picture before the question ends is begun.
            self.assistant.expect_question(session_id)

    def _end_connection(self, device: str) -> None:
        self.assistant.memory.forget(device)
        task = self.hub.disconnect(device)
        if task is not None:
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    def _pairing_facts(self) -> ApplianceFacts:
        discovery = self.config.discovery
        return ApplianceFacts(self.identity.appliance_id, instance_name(discovery.name, discovery.room),
                              self.tls_port, self.fingerprint())

    def _condition(self) -> dict[str, Any]:
        return self.status.condition()

    def _voices(self) -> list[str]:
        return [Path(self.config.tts.voice).name]

    def _faults(self) -> list[str]:
        refused = [f"reload refused: {self.reload_refused}"] if self.reload_refused else []
        keys = [backend.fault for backend in self.chain.status() if backend.fault]
        clock = clock_fault(datetime.now(UTC).year)
        return [*self.registry.notices, *(server.fault for server in self.remotes if server.fault),
                *([clock] if clock else []), *keys, *refused]

    def _facts(self) -> dict[str, Any]:
        return {
            "url": self.url(), "tls_port": self.tls_port, "auth": self.config.auth.mode,
            "auth_note": "any device on the network may talk to this appliance"
            if self.config.auth.mode == "open" else "",
            "pairing_open_s": round(self.pairing.open_for()), "paired_devices": len(self.registry.devices()),
            "needs_restart": self.needs_restart, "announced_as": self._announcer.name if self._announcer else "",
            "announced_on": list(self._announcer.interfaces) if self._announcer else [],
        }


async def within(seconds: float, close: Callable[[], Awaitable[None]], what: str) -> None:
    """Close a part of the appliance, and leave it after some seconds: the end of the others must not wait for it."""
    try:
        async with asyncio.timeout(seconds):
            await close()
    except TimeoutError:
        _LOG.warning("The end of %s took more than %.0f s and was not waited for", what, seconds)


def _verify(store: ModelStore, names: Sequence[str]) -> None:
    for name in names:
        if name in store.catalogue:
            store.verify(name)


def _has_eyes(store: ModelStore, name: str) -> bool:
    return name in store.catalogue and bool(store.catalogue[name].projector)
