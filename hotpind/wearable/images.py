"""Takes a device's picture: checks it, turns it upright, makes it small, and drops its metadata."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from PIL import Image, ImageOps, UnidentifiedImageError

from hotpind.chat.messages import Picture
from hotpind.config.schema import LimitsSection
from hotpind.devices.device import hash_token
from hotpind.devices.limiter import network_of
from hotpind.errors import DeviceError
from hotpind.wearable.protocol import LONGEST_SESSION_ID
from hotpind.web.auth import bearer_of
from hotpind.web.replies import address_of, problem, reply, too_often

JPEG_QUALITY = 85
UPLOAD_DEADLINE_S = 30.0
"""A VGA picture takes a second on bad Wi-Fi; a client that drips bytes is not waited for."""
UPLOADS_AT_ONCE = 24
"""Each may be held in memory as a whole; whoever sends one more is told so before its body is read."""
UPLOADS_OF_ADDRESS = 10
"""So many devices may be behind one address, each sending a picture; also for how many pictures a minute it is good."""
UPLOADS_OF_DEVICE = 2
UPLOAD_RETRY_S = 1.0
DECODES_AT_ONCE = 2
BIG_PIXELS = 4_000_000
"""Pictures above this are decoded one at a time: a pin sends a tenth of it."""
DECODES_WAITING = 16
MOST_DEVICES = 256
CHUNK = 65_536

_ALL = "all"


def count_pixels(content: bytes) -> int:
    """Return how many pixels a JPEG or PNG says it has; reads its header only.

    Raises `DeviceError` (415: neither JPEG nor PNG, 400: broken).
    """
    image = _opened(content)
    return image.width * image.height


def prepare_picture(content: bytes, limits: LimitsSection) -> Picture:
    """Decode a JPEG or PNG and encode it anew: upright, at most ``limits.image_width`` pixels wide or high.

    Blocks for tens of milliseconds. Raises `DeviceError` (415: neither JPEG nor PNG, 400: broken or too many pixels).
    """
    image = _opened(content)
    most = limits.image_pixels if image.format != "PNG" else min(limits.image_pixels, limits.png_pixels)
    if image.width * image.height > most:
        why = "limits.image_pixels" if most == limits.image_pixels else "limits.png_pixels; a JPEG may have more"
        raise DeviceError(f"The picture has {image.width} x {image.height} pixels; at most {most:,} pixels are taken "
                          f"({why}).")
    small = _fitting(image.size, limits.image_width)
    try:
        # Lets the JPEG decoder skip detail that would be thrown away.
        image.draft("RGB", small)
        if image.mode in {"P", "PA", "1"}:
            # Between the entries of a palette there is nothing to average.
            image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
        # Everything else is done to the small picture: copies of a large one take hundreds of megabytes.
        image.thumbnail(small)
        ImageOps.exif_transpose(image, in_place=True)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        raise DeviceError("The picture is truncated or broken; send it again.") from None
    if image.mode in {"RGBA", "LA"}:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    elif image.mode != "RGB":
        image = image.convert("RGB")
    out = io.BytesIO()
    image.info.clear()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return Picture(out.getvalue(), image.width, image.height)


def _opened(content: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    except UnidentifiedImageError:
        raise DeviceError("The file is neither a JPEG nor a PNG picture; send one of these.", status=415) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise DeviceError("The picture's header is broken; take it again.") from None


def _fitting(size: tuple[int, int], most: int) -> tuple[int, int]:
    """Return the size of a picture that is at most ``most`` pixels wide and high."""
    scale = min(1.0, most / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass(slots=True)
class ImageQuota:
    """How many pictures each device has sent within a minute. Pure: time is passed in."""

    _times: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def wait_s(self, device: str, now: float, per_minute: int) -> float:
        """Count a picture; return 0, or the seconds to wait when there were too many (then it is not counted)."""
        times = self._times.setdefault(device, deque())
        self._times.move_to_end(device)
        if len(self._times) > MOST_DEVICES:
            self._times.popitem(last=False)
        while times and now - times[0] >= 60:
            times.popleft()
        if len(times) >= per_minute:
            return 60 - (now - times[0])
        times.append(now)
        return 0.0


@dataclass(slots=True)
class UploadPlaces:
    """Bounds the pictures that are being taken in: of all, of an address, and of a device. Pure."""

    _taken: Counter[str] = field(default_factory=Counter)

    def free(self, address: str, device: str) -> bool:
        """Tell whether there is a place for one more; ``device`` is empty when it showed no token."""
        return (self._taken[_ALL] < UPLOADS_AT_ONCE and self._taken[address] < UPLOADS_OF_ADDRESS
                and (not device or self._taken[device] < UPLOADS_OF_DEVICE))

    @contextlib.contextmanager
    def taken(self, address: str, device: str) -> Iterator[None]:
        """Hold a place."""
        keys = [_ALL, address, *([device] if device else [])]
        self._taken.update(keys)
        try:
            yield
        finally:
            self._taken.subtract(keys)
            # Drops those at nought, so that the table stays as small as what is under way.
            self._taken += Counter()


class ImageIntake:
    """The route ``POST /image``."""

    def __init__(self, limits: Callable[[], LimitsSection], workers: Executor,
                 may_use: Callable[[web.Request, str], Awaitable[None]],
                 keep: Callable[[str, Picture], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Check with ``may_use`` (raises an HTTP error), give pictures to ``keep``."""
        self._limits = limits
        self._workers = workers
        self._may_use = may_use
        self._keep = keep
        self._clock = clock
        self._quota = ImageQuota()
        self._clients = ImageQuota()
        self._places = UploadPlaces()
        self._decoding = asyncio.Semaphore(DECODES_AT_ONCE)
        self._decoding_big = asyncio.Lock()
        self._waiting = 0

    async def post(self, request: web.Request) -> web.Response:
        """Take a picture; the answer's body stays under 1024 bytes, the pin's buffer."""
        # An empty session: is this client let in at all, before its body is read?
        await self._may_use(request, "")
        limits = self._limits()
        if not request.content_type.startswith("multipart/form-data"):
            return problem(415, "Send the picture as multipart/form-data with the parts session and file.")
        address = "address " + network_of(address_of(request))
        token = bearer_of(request)
        # Only ever compared: the token itself is not kept.
        device = "device " + hash_token(token).hex() if token else ""
        if not self._places.free(address, device):
            return too_often("Too many pictures are being sent at once; send it again in a moment.", UPLOAD_RETRY_S)
        now, per_minute = self._clock(), limits.images_per_minute
        wait = (self._clients.wait_s(address, now, UPLOADS_OF_ADDRESS * per_minute)
                or (self._clients.wait_s(device, now, per_minute) if device else 0.0))
        if wait:
            return _too_many(per_minute, wait)
        with self._places.taken(address, device):
            return await self._take(request, limits)

    async def _take(self, request: web.Request, limits: LimitsSection) -> web.Response:
        """Read, check and keep a picture for which there is a place."""
        try:
            async with asyncio.timeout(UPLOAD_DEADLINE_S):
                session, content, name = await _read_parts(request, limits.image_bytes)
        except TimeoutError:
            return problem(408, f"The upload took longer than {UPLOAD_DEADLINE_S:.0f} s; send it again.")
        except DeviceError as error:
            return problem(error.status, str(error))
        except (ValueError, KeyError, AssertionError, ConnectionError, HttpProcessingError, ClientPayloadError):
            return problem(400, "The multipart body is malformed or cut short; send it again.")
        if not session:
            return problem(400, "The part \"session\" with the device's session id is missing.")
        if content is None:
            return problem(400, "The part \"file\" with the picture is missing.")
        await self._may_use(request, session)
        wait = self._quota.wait_s(session, self._clock(), limits.images_per_minute)
        if wait:
            return _too_many(limits.images_per_minute, wait)
        try:
            picture = await self._decode(content, limits)
        except DeviceError as error:
            return problem(error.status, str(error))
        self._keep(session, picture)
        return reply({"status": "success", "message": "Image received; it belongs to the next question.",
                      "session": session, "filename": name, "size_bytes": len(content), "context_ready": True},
                     shortest=True)

    async def _decode(self, content: bytes, limits: LimitsSection) -> Picture:
        if self._waiting >= DECODES_WAITING:
            raise DeviceError("Too many pictures at once; send it again in a moment.", status=503)
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            pixels = await loop.run_in_executor(self._workers, count_pixels, content)
            async with self._decoding_big if pixels > BIG_PIXELS else contextlib.nullcontext(), self._decoding:
                return await loop.run_in_executor(self._workers, prepare_picture, content, limits)
        finally:
            self._waiting -= 1


def _too_many(per_minute: int, wait: float) -> web.Response:
    return too_often(f"More than {per_minute} pictures a minute; wait {wait:.0f} s.", wait)


async def _read_parts(request: web.Request, most: int) -> tuple[str, bytes | None, str]:
    """Read the parts ``session`` and ``file``; raises `DeviceError` when one is too large."""
    session, content, name = "", None, "image.jpg"
    reader: MultipartReader = await request.multipart()
    parts = 0
    while (part := await reader.next()) is not None:
        parts += 1
        if parts > 8 or not isinstance(part, BodyPartReader):
            raise DeviceError("The multipart body has more parts than session and file.")
        if part.name == "session":
            session = (await _limited(part, LONGEST_SESSION_ID * 4, "session")).decode().strip()
            if len(session) > LONGEST_SESSION_ID or not session.isprintable():
                raise DeviceError(f"A session id has at most {LONGEST_SESSION_ID} printable characters.")
        elif part.name == "file":
            name = "".join(c for c in (part.filename or name) if c.isprintable())[:64]
            content = await _limited(part, most, "picture")
        else:
            await _limited(part, CHUNK, part.name or "nameless part")
    return session, content, name


async def _limited(part: BodyPartReader, most: int, what: str) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(CHUNK):
        content += chunk
        if len(content) > most:
            raise DeviceError(f"The {what} is larger than {most:,} bytes.", status=413)
    return bytes(content)
