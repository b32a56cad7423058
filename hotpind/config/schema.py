"""The settings: every key with its type, default, unit and one line of explanation.

``docs/configuration.md`` and ``config/hotpin.toml`` are generated from this module (``hotpind.config.reference``),
so a field's ``description`` is the documentation. ``live=True`` marks a key that ``systemctl reload hotpind`` applies
to the running daemon; all others need a restart.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0)]


def _wyoming(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        tcp = parts.scheme == "tcp" and bool(parts.hostname and parts.port) and not (parts.path or parts.query)
    except ValueError:  # a port that is no number or too large, a broken IPv6 address
        tcp = False
    unix = uri.startswith("unix:///") and len(uri) > len("unix:///")
    if uri and not (tcp or unix):
        raise ValueError(f"{uri!r} is no address of a Wyoming server; write tcp://host:port or unix:///path, or "
                         "leave it empty for the built-in engine")
    return uri


WyomingUri = Annotated[str, AfterValidator(_wyoming)]


def setting(default: Any, description: str, *, live: bool = False, **limits: Any) -> Any:
    """Declare a key: its default, its documentation, whether a reload applies it, and its limits."""
    return Field(default, description=description, json_schema_extra={"live": live}, **limits)


class Section(BaseModel):
    """Base of every table: unknown keys and wrong types are errors, and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ServerSection(Section):
    """Where the appliance listens."""

    host: str = setting("", "Address to listen on; empty means every address, IPv4 and IPv6.")
    port: int = setting(8000, "TCP port of the wearable protocol and the API.", ge=0, le=65535)
    max_devices: int = setting(32, "Devices connected at the same time; one more is refused politely.",
                               live=True, ge=1, le=1024)
    max_message_bytes: int = setting(65536, "Largest WebSocket message taken from a device, in bytes.",
                                     ge=4096, le=16_777_216)
    busy_turns: int = setting(12, "Turns answered at the same time; a further one hears that the appliance is busy.",
                              live=True, ge=1, le=256)
    allowed_hosts: list[str] = setting(
        [], "Further names that a browser may use for this appliance in its Host header (addresses, "
        "localhost and the appliance's own .local names always work).", live=True)


class AuthSection(Section):
    """Who may talk to the appliance."""

    mode: Literal["paired", "open"] = setting(
        "paired", "\"paired\": a device needs the token it got when pairing. \"open\": any device on the network "
        "may talk (for old pins on a network that you trust).")
    first_window_minutes: float = setting(
        10.0, "Minutes after start during which an appliance that never had a device pairs the first one that asks.",
        ge=0, le=1440)


class DiscoverySection(Section):
    """How pins find the appliance (mDNS, _hotpin._tcp)."""

    enabled: bool = setting(True, "Announce the appliance over mDNS.")
    name: str = setting("Hotpin", "Friendly name that is announced.", min_length=1, max_length=40)
    room: str = setting("", "Room, added to the friendly name (\"Hotpin Kitchen\").", max_length=20)
    interfaces: list[str] = setting(
        [], "Network interfaces to announce on; empty means all but loopback, docker and bridges of containers.")


class TlsSection(Section):
    """Encryption of the link, beside the plain port."""

    enabled: bool = setting(False, "Serve https and wss on `tls.port` as well.")
    port: int = setting(8443, "TCP port of https and wss.", ge=0, le=65535)
    required: bool = setting(False, "Refuse plain http and ws (but for /health).")
    certificate: str = setting("", "Your own certificate chain (PEM file); empty: one is made at first start.")
    key: str = setting("", "Private key of your own certificate (PEM file).")

    @model_validator(mode="after")
    def _pair(self) -> TlsSection:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together: set both or neither")
        if self.required and not self.enabled:
            raise ValueError("required refuses every device unless enabled is true as well")
        return self


class PathsSection(Section):
    """Where things are kept. Empty means: the directory systemd gives, else the XDG directory."""

    state: str = setting("", "Devices, identity and secrets (default $STATE_DIRECTORY or ~/.local/state/hotpin).")
    models: str = setting("", "Model files (default $CACHE_DIRECTORY/models or ~/.cache/hotpin/models).")
    runtime: str = setting("", "Sockets (default $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR/hotpin or /tmp/hotpin-UID).")


class SttSection(Section):
    """Speech to text."""

    uri: WyomingUri = setting("", "A Wyoming server used in place of the built-in engine, such as tcp://nas:10300.")
    engine: Literal["pywhispercpp", "whisper-cpp-python"] = setting(
        "pywhispercpp", "Built-in engine; whisper-cpp-python is an extra, which scripts/run installs when this asks "
        "for it.")
    model: str = setting("whisper-tiny.en",
                         "Model of the built-in engine: a name of `hotpinctl models list` or a file.")
    language: str = setting("en", "Language spoken, as ISO 639-1 code; multilingual models only.")
    threads: int = setting(0, "CPU threads; 0 chooses for this machine.", ge=0, le=64)
    deadline_s: Seconds = setting(15.0, "Seconds one transcription may take before the engine is replaced.", live=True)
    ahead: bool = setting(True, "Transcribe at pauses while the user still talks.", live=True)
    pause_s: float = setting(0.09, "Seconds of silence that count as a pause worth transcribing at.",
                             live=True, ge=0.06, le=2)


class TtsSection(Section):
    """Text to speech."""

    uri: WyomingUri = setting("", "A Wyoming server used in place of the built-in engine, such as tcp://nas:10200.")
    voice: str = setting("piper-en_US-joe-medium",
                         "Voice of the built-in engine: a name of `hotpinctl models list` or an .onnx file.")
    speaker: int = setting(0, "Speaker of a voice that has several.", ge=0)
    length_scale: float = setting(1.0, "Speaking pace: 1.2 is slower, 0.8 faster.", gt=0.3, lt=3)
    threads: int = setting(0, "CPU threads; 0 chooses for this machine.", ge=0, le=64)
    deadline_s: Seconds = setting(15.0, "Seconds one sentence may take before the engine is replaced.", live=True)


class GroqModel(Section):
    """A model of the cloud service (a `[[chat.groq.models]]` table)."""

    name: str = Field(min_length=1, description="The service's name of the model.")
    images: bool = Field(default=True, description="The model understands pictures.")
    max_tokens: int = Field(default=300, ge=16, le=8192, description="Most tokens of one answer.")
    reasoning_effort: str = Field(default="", description="Value of the parameter of that name; empty: not sent.")


class GroqSection(Section):
    """The cloud brain. Without a key it is quietly left out."""

    enabled: bool = setting(True, "Ask Groq when there is a key.")
    base_url: str = setting("", "Address of the service; empty: $GROQ_BASE_URL, else https://api.groq.com.")
    key_file: str = setting("", "File with the API key, readable by its owner only (the systemd credential "
                            "groq_api_key and $GROQ_API_KEY come first).")
    connect_timeout_s: Seconds = setting(1.5, "Seconds for DNS, TCP and TLS.")
    models: list[GroqModel] = setting(
        [GroqModel(name="meta-llama/llama-4-scout-17b-16e-instruct"),
         GroqModel(name="qwen/qwen3.6-27b", reasoning_effort="none")],
        "Models in the order in which they are tried; retired ones are skipped.")


class BackendTable(Section):
    """An OpenAI-compatible server on the network (Ollama, llama-server, vLLM)."""

    name: str = Field(min_length=1, max_length=40,
                      description="Its own name in the status and in turn records; not groq or local.")
    url: str = Field(min_length=1, description="Base address up to /v1, such as http://nas:11434/v1.")
    model: str = Field(min_length=1, description="Model to ask for.")
    key_file: str = Field(default="", description="File with an API key, readable by its owner only.")
    images: bool = Field(default=False, description="The model understands pictures.")
    max_tokens: int = Field(default=300, ge=16, le=8192, description="Most tokens of one answer.")
    before_groq: bool = Field(default=False, description="Ask it before Groq, not after.")


class LocalSection(Section):
    """The language model on this machine, for when nothing else answers."""

    model: str = setting("smollm2-135m-instruct", "A name of `hotpinctl models list` or a .gguf file.")
    mmproj: str = setting("", "Vision projector (.gguf) of a model with eyes; empty: the catalogue's, if it has one.")
    context_tokens: int = setting(2048, "Size of the context window, in tokens.", ge=512, le=131072)
    max_tokens: int = setting(80, "Most tokens of one answer.", ge=16, le=2048)
    temperature: float = setting(0.0, "Sampling temperature; 0 always takes the likeliest word.", ge=0, le=2)
    repeat_penalty: float = setting(1.1, "Penalty on repeating tokens; 1 switches it off.", ge=1, le=2)
    threads: int = setting(0, "CPU threads; 0 chooses for this machine.", ge=0, le=64)
    gpu_layers: int = setting(0, "Layers put on the GPU (a Jetson: -1 for all).", ge=-1)
    preload: Literal["auto", "need", "always"] = setting(
        "auto", "\"auto\" loads it at start when no cloud is set up, else after the cloud's first answer if the free "
        "memory is twice what it takes; \"need\" not before the cloud is slow or gone; \"always\" at start.")
    idle_unload_minutes: float = setting(30.0, "Minutes without a question until it is unloaded while the cloud "
                                         "answers; 0: never.", live=True, ge=0)


class ChatSection(Section):
    """The conversation and the models that answer."""

    system_prompt: str = setting("", "Replaces the built-in instructions to the model.", live=True, max_length=4000)
    history_turns: int = setting(10, "Past turns given to the model.", live=True, ge=0, le=100)
    history_idle_minutes: float = setting(30.0, "Minutes of silence after which a new conversation begins; 0: never.",
                                          live=True, ge=0)
    first_token_deadline_s: Seconds = setting(
        2.5, "Seconds the cloud has for its first word before the local model answers in its place (a pin gives a "
        "turn up after 60).", live=True, le=30)
    next_token_deadline_s: Seconds = setting(5.0, "Longest wait between words of a stream, in seconds.", live=True)
    max_answer_words: int = setting(120, "An answer is cut at the end of the sentence that passes this many words.",
                                    live=True, ge=10, le=2000)
    groq: GroqSection = Field(default_factory=GroqSection)
    local: LocalSection = Field(default_factory=LocalSection)
    backend: list[BackendTable] = setting([], "Further OpenAI-compatible servers, in order.")

    @field_validator("backend")
    @classmethod
    def _names_differ(cls, tables: list[BackendTable]) -> list[BackendTable]:
        taken = {"groq", "local"}
        for table in tables:
            if table.name in taken:
                raise ValueError(f'the name "{table.name}" of a [[chat.backend]] table is taken; every backend needs a '
                                 'name of its own, which is not "groq" or "local"')
            taken.add(table.name)
        return tables


class SpeakingSection(Section):
    """How answers are sent to a device."""

    lead_s: float = setting(3.0, "Seconds of audio sent ahead of playback (a pin holds 11 s at 22.05 kHz).",
                            live=True, ge=0.5, le=4)
    turn_deadline_s: Seconds = setting(50.0, "Seconds from EOS within which an answer must have begun "
                                       "(a pin gives up after 60).", live=True)


class EndpointingSection(Section):
    """The appliance finds the end of speech itself, for devices that ask for it (protocol version 2)."""

    silence_s: float = setting(0.7, "Seconds of silence that end an utterance.", live=True, ge=0.2, le=5)
    max_wait_s: float = setting(8.0, "Seconds without any speech after which listening ends.", live=True, ge=1, le=60)


class LimitsSection(Section):
    """Bounds on what devices may send."""

    recording_s: float = setting(
        60.0, "Longest recording, in seconds; one that is over a second longer is answered with an error.",
        live=True, gt=1, le=600)
    image_bytes: int = setting(5_000_000,
        "Largest picture file, in bytes (413 above).", live=True, ge=10_000, le=50_000_000)
    image_pixels: int = setting(33_000_000, "Largest picture, in pixels (a guard against decompression bombs).",
                                live=True, ge=10_000, le=200_000_000)
    png_pixels: int = setting(
        12_000_000, "Largest PNG, in pixels: it is decoded as a whole, at 4 to 8 bytes a pixel, of a JPEG only a small "
        "version; image_pixels bounds it too.", live=True, ge=10_000, le=200_000_000)
    image_width: int = setting(1568, "Pictures are re-encoded at most this wide, in pixels.", live=True, ge=64, le=8192)
    images_per_minute: int = setting(10,
        "Pictures taken from one device in a minute (429 above).", live=True, ge=1, le=600)
    image_keep_minutes: float = setting(5.0, "Minutes an unused picture is kept.", live=True, gt=0, le=1440)


class PrivacySection(Section):
    """What leaves memory. By default nothing does."""

    log_transcripts: bool = setting(False, "Write transcripts and answers to the log.", live=True)


class LogSection(Section):
    """Messages to the journal or the terminal."""

    level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least severe message that is written.", live=True)


class Config(Section):
    """All settings of the appliance."""

    server: ServerSection = Field(default_factory=ServerSection)
    auth: AuthSection = Field(default_factory=AuthSection)
    discovery: DiscoverySection = Field(default_factory=DiscoverySection)
    tls: TlsSection = Field(default_factory=TlsSection)
    paths: PathsSection = Field(default_factory=PathsSection)
    stt: SttSection = Field(default_factory=SttSection)
    tts: TtsSection = Field(default_factory=TtsSection)
    chat: ChatSection = Field(default_factory=ChatSection)
    speaking: SpeakingSection = Field(default_factory=SpeakingSection)
    endpointing: EndpointingSection = Field(default_factory=EndpointingSection)
    limits: LimitsSection = Field(default_factory=LimitsSection)
    privacy: PrivacySection = Field(default_factory=PrivacySection)
    log: LogSection = Field(default_factory=LogSection)
