"""The machine's network interfaces and addresses, from the kernel's netlink socket (rtnetlink(7)).

Netlink says what getifaddrs does not: whether an interface has a carrier, what kind it is, which bridge it
belongs to, and whether an address is only tentative.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP, _NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 10, 18, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_ATTRIBUTE_TYPE = 0x3FFF
"""Without the flags "nested" and "network byte order"."""

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")

_REPLY_SECONDS = 2.0
_DUMP_ATTEMPTS = 3
_RECEIVE_BYTES = 1 << 16


class LinkFlag(IntFlag):
    """Of netdevice(7): those that matter here."""

    UP = 0x1
    LOOPBACK = 0x8
    POINTOPOINT = 0x10
    RUNNING = 0x40
    MULTICAST = 0x1000


class AddressFlag(IntFlag):
    """Of linux/if_addr.h: those that matter here."""

    TEMPORARY = 0x01
    DAD_FAILED = 0x08
    DEPRECATED = 0x20
    TENTATIVE = 0x40


NO_FLAGS = AddressFlag(0)


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    flags: LinkFlag
    kind: str = ""
    """The driver's kind for virtual interfaces, such as "bridge" or "veth"; empty for hardware."""
    master: int = 0
    """Index of the bridge or bond that it belongs to; 0: none."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of an interface."""

    index: int
    ip: IpAddress
    flags: AddressFlag = NO_FLAGS


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All interfaces and addresses at one time, sorted, so that two can be compared."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()


def open_monitor() -> socket.socket:
    """Open a non-blocking socket that becomes readable whenever an interface or address changes.

    What it delivers need not be looked at. Raises OSError where netlink is not allowed.
    """
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    try:
        monitor.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        monitor.close()
        raise
    return monitor


def drain(monitor: socket.socket) -> None:
    """Throw away what the monitor delivered. Raises OSError when it will deliver nothing more."""
    while True:
        try:
            if not monitor.recv(_RECEIVE_BYTES):
                return
        except BlockingIOError:
            return
        except OSError as error:
            # More changes than fit. They are lost, but that there were some is all that matters.
            if error.errno != errno.ENOBUFS:
                raise


def take_snapshot() -> Snapshot:
    """Ask the kernel for all interfaces and addresses. Blocking, a millisecond. Raises OSError."""
    of_links = _dump(_RTM_GETLINK, _RTM_NEWLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    of_addresses = _dump(_RTM_GETADDR, _RTM_NEWADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    links = [link for body in of_links if (link := parse_link(body))]
    addresses = [address for body in of_addresses if (address := parse_address(body))]
    return Snapshot(tuple(sorted(links, key=lambda link: link.index)),
                    tuple(sorted(addresses, key=lambda each: (each.index, each.ip.version, each.ip.packed))))


def parse_link(body: bytes) -> Link | None:
    """Read the body of an RTM_NEWLINK message; None when it names no interface."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    name, kind, master = "", "", 0
    for type_, value in _attributes(body[_IFINFO.size:]):
        if type_ == _IFLA_IFNAME:
            name = _text(value)
        elif type_ == _IFLA_MASTER:
            master = struct.unpack("=I", value[:4])[0]
        elif type_ == _IFLA_LINKINFO:
            kind = next((_text(inner) for inner_type, inner in _attributes(value)
                         if inner_type == _IFLA_INFO_KIND), "")
    known = LinkFlag.UP | LinkFlag.LOOPBACK | LinkFlag.POINTOPOINT | LinkFlag.RUNNING | LinkFlag.MULTICAST
    return Link(index, name, LinkFlag(flags & known), kind, master) if name else None


def parse_address(body: bytes) -> Address | None:
    """Read the body of an RTM_NEWADDR message; None for other address families."""
    family, _, short_flags, _, index = _IFADDR.unpack_from(body)
    flags, packed = short_flags, b""
    for type_, value in _attributes(body[_IFADDR.size:]):
        # On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL is always one's own, but IPv6
        # omits it.
        if type_ == _IFA_LOCAL or (type_ == _IFA_ADDRESS and not packed):
            packed = value
        elif type_ == _IFA_FLAGS:
            flags = struct.unpack("=I", value[:4])[0]
    if (family, len(packed)) not in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        return None
    known = AddressFlag.TEMPORARY | AddressFlag.DAD_FAILED | AddressFlag.DEPRECATED | AddressFlag.TENTATIVE
    if family == socket.AF_INET:
        # The same bit means "secondary address" there.
        known &= ~AddressFlag.TEMPORARY
    return Address(index, ipaddress.ip_address(packed), AddressFlag(flags & known))


def _dump(request: int, expected: int, body: bytes) -> list[bytes]:
    """Ask for a table; return the bodies of its messages. A table that changed meanwhile is asked for again."""
    bodies: list[bytes] = []
    for _ in range(_DUMP_ATTEMPTS):
        bodies, interrupted = _dump_once(request, expected, body)
        if not interrupted:
            break
    return bodies


def _dump_once(request: int, expected: int, body: bytes) -> tuple[list[bytes], bool]:
    bodies: list[bytes] = []
    interrupted = False
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_REPLY_SECONDS)
        kernel.bind((0, 0))
        kernel.send(_HEADER.pack(_HEADER.size + len(body), request, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + body)
        while True:
            for type_, flags, message in split_messages(kernel.recv(_RECEIVE_BYTES)):
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if type_ == _NLMSG_DONE:
                    return bodies, interrupted
                if type_ == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", message)[0]
                    raise OSError(code, os.strerror(code))
                if type_ == expected:
                    bodies.append(message)


def split_messages(datagram: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Split a netlink datagram into (type, flags, body) of its messages."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, type_, flags, _, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > len(datagram):
            return
        yield type_, flags, datagram[offset + _HEADER.size:offset + length]
        offset += _aligned(length)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, type_ = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            return
        yield type_ & _ATTRIBUTE_TYPE, data[offset + _ATTRIBUTE.size:offset + length]
        offset += _aligned(length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("utf-8", "replace")

