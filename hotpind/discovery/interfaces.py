"""Which interfaces the appliance is announced on, and with which addresses. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from hotpind.discovery.netlink import AddressFlag, IpAddress, Link, LinkFlag, Snapshot

MOST_ADDRESSES = 4
"""Addresses of one family that are announced on one interface; more would not fit in a small answer."""

_CONTAINER_NAMES = re.compile(
    r"(docker|br-[0-9a-f]{12}|veth|virbr|vnet|lxcbr|lxdbr|incusbr|podman|cni|cali|cilium|flannel|kube|ve-|vb-|vz-)")
_VIRTUAL_PORTS = frozenset({"veth", "tun", "tap", "dummy", "vcan", "vxlan", "geneve", "ifb", "macvlan"})
_JOINING = frozenset({"bridge", "bond", "team", "openvswitch"})
_NOT_MULTICAST = frozenset({"wireguard", "ifb", "sit", "ip6tnl", "ipip", "gre", "vti", "xfrm"})
_UNUSABLE = AddressFlag.TENTATIVE | AddressFlag.DAD_FAILED | AddressFlag.DEPRECATED | AddressFlag.TEMPORARY


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface to announce on."""

    index: int
    name: str
    addresses: tuple[IpAddress, ...]
    """Announced, IPv4 first. Link-local IPv6 only if there is nothing else: it is of no use without a zone."""
    senders: tuple[IpAddress, ...]
    """Addresses to send from: those of IPv4, and one of IPv6."""
    unique_senders: bool = True
    """False when another interface has the same IPv6 sender (VLANs on one card share their link-local address)."""


def choose(snapshot: Snapshot, configured: Collection[str] = ()) -> tuple[Interface, ...]:
    """Choose the interfaces that are up and have an address.

    ``configured`` names the ones wanted; when it is empty all are taken but loopback, tunnels, containers'
    bridges and what belongs to a bridge.
    """
    kinds = {link.index: link.kind for link in snapshot.links}
    chosen = []
    for link in snapshot.links:
        if not link.flags & LinkFlag.UP or not link.flags & LinkFlag.RUNNING:
            continue
        if link.name not in configured if configured else not _is_home_network(link, kinds, snapshot):
            continue
        interface = _interface(link, snapshot)
        if interface is not None:
            chosen.append(interface)
    return tuple(chosen)


def _is_home_network(link: Link, kinds: dict[int, str], snapshot: Snapshot) -> bool:
    if link.flags & (LinkFlag.LOOPBACK | LinkFlag.POINTOPOINT) or not link.flags & LinkFlag.MULTICAST:
        return False
    if link.kind in _NOT_MULTICAST or _CONTAINER_NAMES.match(link.name):
        return False
    if kinds.get(link.master) in _JOINING:
        return False
    if link.kind == "bridge":
        # A bridge that nothing but containers and virtual machines is attached to leads nowhere else.
        ports = [port for port in snapshot.links if port.master == link.index]
        return any(port.kind not in _VIRTUAL_PORTS for port in ports)
    return True


def _interface(link: Link, snapshot: Snapshot) -> Interface | None:
    mine: list[IpAddress] = [
        each.ip for each in snapshot.addresses if each.index == link.index and not each.flags & _UNUSABLE]
    # An IPv4 address that the machine gave itself (169.254/16) comes after one that it was given.
    v4: list[IpAddress] = [ip for ip in mine if ip.version == 4]
    v4 = sorted(v4, key=lambda ip: ip.is_link_local)[:MOST_ADDRESSES]
    v6: list[IpAddress] = [ip for ip in mine if ip.version == 6 and not ip.is_link_local]
    local: list[IpAddress] = [ip for ip in mine if ip.version == 6 and ip.is_link_local]
    v6, local = v6[:MOST_ADDRESSES], local[:1]
    announced = [*v4, *v6] or local
    if not announced:
        return None
    sender6 = local or v6[:1]
    unique = not any(each.ip in sender6 and each.index != link.index for each in snapshot.addresses)
    return Interface(link.index, link.name, tuple(announced), (*v4, *sender6), unique)
