"""Which interfaces are announced on, and with which addresses."""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import struct
import subprocess

import pytest

from hotpind.discovery.interfaces import MOST_ADDRESSES, choose
from hotpind.discovery.netlink import (
    NO_FLAGS,
    Address,
    AddressFlag,
    Link,
    LinkFlag,
    Snapshot,
    parse_address,
    parse_link,
    split_messages,
    take_snapshot,
)

UP = LinkFlag.UP | LinkFlag.RUNNING | LinkFlag.MULTICAST


def link(index: int, name: str, flags: LinkFlag = UP, kind: str = "", master: int = 0) -> Link:
    return Link(index, name, flags, kind, master)


def address(index: int, ip: str, flags: AddressFlag = NO_FLAGS) -> Address:
    return Address(index, ipaddress.ip_address(ip), flags)


def names(*links: Link, configured: tuple[str, ...] = ()) -> list[str]:
    """Choose among interfaces that all have an address."""
    addresses = tuple(address(each.index, f"198.51.100.{each.index}") for each in links)
    return [interface.name for interface in choose(Snapshot(links, addresses), configured)]


def addresses(*mine: Address) -> list[str]:
    (interface,) = choose(Snapshot((link(1, "eth0"),), mine))
    return [str(ip) for ip in interface.addresses]


def test_a_raspberry_pi_is_announced_on_both_its_networks() -> None:
    assert names(link(1, "lo", LinkFlag.UP | LinkFlag.RUNNING | LinkFlag.LOOPBACK), link(2, "eth0"),
                 link(3, "wlan0")) == ["eth0", "wlan0"]


@pytest.mark.parametrize("flags", [
    LinkFlag.UP | LinkFlag.MULTICAST, LinkFlag.RUNNING | LinkFlag.MULTICAST, LinkFlag.UP | LinkFlag.RUNNING,
    UP | LinkFlag.LOOPBACK, UP | LinkFlag.POINTOPOINT])
def test_links_that_lead_nowhere_are_left_out(flags: LinkFlag) -> None:
    assert names(link(1, "eth0", flags)) == []


@pytest.mark.parametrize("name", [
    "docker0", "br-0123456789ab", "veth12ab34", "virbr0", "vnet3", "lxcbr0", "lxdbr0", "podman1", "cni0", "cali123",
    "ve-pi"])
def test_containers_are_left_out_by_name(name: str) -> None:
    assert names(link(1, name)) == []


def test_a_bridge_of_containers_is_left_out_and_one_with_a_card_is_not() -> None:
    assert names(link(1, "mybridge", kind="bridge"), link(2, "x1", kind="veth", master=1),
                 link(3, "x2", kind="tun", master=1)) == []
    assert names(link(1, "br0", kind="bridge"), link(2, "eth0", master=1), link(3, "vnet0", kind="tun", master=1)) == [
        "br0"]


def test_a_bond_is_announced_on_and_its_parts_are_not() -> None:
    assert names(link(1, "bond0", kind="bond"), link(2, "eth0", master=1), link(3, "eth1", master=1)) == ["bond0"]


def test_a_vlan_and_a_containers_own_end_of_a_veth_are_home_networks() -> None:
    assert names(link(1, "eth0.10", kind="vlan"), link(2, "host0", kind="veth")) == ["eth0.10", "host0"]


def test_configured_interfaces_are_taken_at_their_word() -> None:
    links = (link(1, "lo", LinkFlag.UP | LinkFlag.RUNNING | LinkFlag.LOOPBACK), link(2, "eth0"), link(3, "docker0"),
             link(4, "wlan0", LinkFlag.UP))
    assert names(*links, configured=("lo", "docker0", "wlan0", "nope")) == ["lo", "docker0"]


def test_an_interface_without_an_address_is_left_out() -> None:
    assert choose(Snapshot((link(1, "eth0"),), (address(2, "198.51.100.1"),))) == ()


@pytest.mark.parametrize("flag", list(AddressFlag))
def test_addresses_that_do_not_last_are_left_out(flag: AddressFlag) -> None:
    assert addresses(address(1, "198.51.100.1"), address(1, "2001:db8::1", flag)) == ["198.51.100.1"]


def test_addresses_are_ordered_by_use() -> None:
    assert addresses(address(1, "fe80::1"), address(1, "2001:db8::1"), address(1, "169.254.3.3"),
                     address(1, "198.51.100.1")) == ["198.51.100.1", "169.254.3.3", "2001:db8::1"]


def test_a_link_local_address_is_better_than_none() -> None:
    assert addresses(address(1, "fe80::1")) == ["fe80::1"]


def test_addresses_are_bounded() -> None:
    assert len(addresses(*(address(1, f"198.51.100.{n}") for n in range(1, 50)))) == MOST_ADDRESSES


def test_a_link_local_address_that_two_interfaces_share_is_noticed() -> None:
    found = choose(Snapshot((link(1, "eth0"), link(2, "eth0.10", kind="vlan"), link(3, "wlan0")),
                            (address(1, "fe80::1"), address(2, "fe80::1"), address(3, "fe80::3"))))
    assert [each.unique_senders for each in found] == [False, False, True]


@pytest.mark.skipif(shutil.which("ip") is None, reason="iproute2 is not installed")
def test_the_snapshot_is_what_ip_says() -> None:
    snapshot = take_snapshot()
    told = json.loads(subprocess.run(["ip", "-j", "-d", "addr"], check=True, capture_output=True).stdout)
    assert {(each.index, each.name, each.kind) for each in snapshot.links} == {
        (each["ifindex"], each["ifname"], each.get("linkinfo", {}).get("info_kind", "")) for each in told}
    assert {(each.index, str(each.ip)) for each in snapshot.addresses} == {
        (each["ifindex"], info["local"]) for each in told for info in each["addr_info"]}
    up = {each["ifname"] for each in told if "UP" in each["flags"]}
    assert {each.name for each in snapshot.links if each.flags & LinkFlag.UP} == up


def attribute(type_: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), type_) + value + b"\0" * (-len(value) % 4)


def test_messages_of_the_kernel_are_read() -> None:
    body = struct.pack("=BxHiII", 0, 1, 7, 0x1043, 0) + attribute(3, b"br0\0") + attribute(
        0x8000 | 18, attribute(1, b"bridge\0")) + attribute(10, struct.pack("=I", 3))
    assert parse_link(body) == Link(7, "br0", UP, "bridge", 3)
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 7) + attribute(1, bytes([10, 0, 0, 2])) + attribute(
        2, bytes([10, 0, 0, 1]))
    assert parse_address(body) == address(7, "10.0.0.1")
    body = struct.pack("=BBBBI", socket.AF_INET6, 64, 0, 0, 7) + attribute(1, ipaddress.ip_address("fe80::1").packed)
    tentative = body + attribute(8, struct.pack("=I", 0x240))
    assert parse_address(tentative) == address(7, "fe80::1", AddressFlag.TENTATIVE)


def test_a_secondary_ipv4_address_is_not_temporary() -> None:
    body = struct.pack("=BBBBI", socket.AF_INET, 24, 1, 0, 7) + attribute(2, bytes([10, 0, 0, 1]))
    assert parse_address(body) == address(7, "10.0.0.1")


def test_odd_messages_are_skipped() -> None:
    assert list(split_messages(b"\x04\0\0\0" + b"\0" * 12)) == []
    assert list(split_messages(b"\xff\xff\0\0" + b"\0" * 12)) == []
    assert parse_link(struct.pack("=BxHiII", 0, 1, 7, 0, 0) + b"\x02\0\x03\0") is None
    assert parse_address(struct.pack("=BBBBI", 28, 0, 0, 0, 7)) is None
