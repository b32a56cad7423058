"""One tree of errors, grouped by what the caller should do about them.

Every message is one sentence that says what is wrong, where, and what to do; it may be shown to a person as it
stands. Nothing secret (keys, tokens, transcripts) may be put into a message.
"""

from __future__ import annotations


class HotpinError(Exception):
    """Base of every error that hotpind raises on purpose."""


class OperatorError(HotpinError):
    """The person who runs the appliance has to change something; retrying does not help."""


class ConfigError(OperatorError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelFileError(OperatorError):
    """A model file is missing, broken, truncated, tampered with, or cannot be stored."""


class StateError(OperatorError):
    """The state directory or the database in it cannot be used."""


class ControlDenied(OperatorError):
    """The user may not talk to the daemon over its control socket; another one, such as root, may."""


class AudioFormatError(HotpinError):
    """A sound file cannot be read; another file, or a conversion to 16-bit PCM WAV, is needed."""


class DeviceError(HotpinError):
    """A device sent something that cannot be served; answer it with this sentence and carry on.

    ``status`` is the HTTP status for requests that get an HTTP answer.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class DeviceGone(DeviceError):
    """The device's connection ended while something was being sent to it; stop working for it."""


class EngineError(HotpinError):
    """A speech or language engine failed; retry the request once or answer another way."""


class EngineUnavailable(EngineError):
    """The engine is not running or does not accept connections (it may be restarting)."""


class EngineTimeout(EngineError):
    """The engine did not finish within the request's deadline and is being replaced."""


class EngineBroke(EngineError):
    """The engine closed the connection or sent something that is not its protocol."""


class BackendError(HotpinError):
    """A language-model backend could not answer; the router decides what is tried next."""


class BackendUnreachable(BackendError):
    """DNS, connect, TLS or transport failed, or the server answered 5xx or 498."""

    def __init__(self, message: str, *, server_fault: bool = False) -> None:
        super().__init__(message)
        self.server_fault = server_fault


class BackendTooLate(BackendError):
    """No first token, or no next token, within its deadline."""


class BackendRateLimited(BackendError):
    """The service answered 429; it may be asked again after ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KeyRejected(BackendError):
    """The service answered 401 or 403; it stays off until the key changes."""


class ModelRetired(BackendError):
    """The service no longer serves the model; use the next one of the list."""

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message)
        self.model = model


class PayloadTooLarge(BackendError):
    """The service answered 413; send the pictures again, smaller, once."""


class BadAnswer(BackendError):
    """The backend answered with nothing that can be spoken, or not in its protocol."""


class StreamBroke(BackendError):
    """The stream ended after words were given out; they must not be said again."""


class NoAnswer(HotpinError):
    """Every backend of the chain failed; the person hears the plain sentence kept for this."""


class PinError(HotpinError):
    """The wearable in software could not do what was asked of it."""


class PinOfflineError(PinError):
    """The pin reaches no appliance, or lost it; look for it again."""


class PinRefusedError(PinError):
    """The appliance knows neither pin nor token (401), or a person said no (403); the pin has to pair."""
