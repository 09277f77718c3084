"""Which addresses a URL of a client may lead to. Pure: nothing here opens a connection."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.addresses import (
    LOOPBACK,
    is_loopback,
    literal,
    parse_networks,
    refusal,
    unwrapped,
)

PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e")
METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "192.0.0.192",
    "100.100.100.200",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
)
PRIVATE = (
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "198.18.0.1",
    "192.0.2.1",
    "203.0.113.9",
    "::1",
    "fc00::1",
    "fdff::1",
    "2001:db8::1",
    "2001::1",
    "2002:0808:0808::1",
    "64:ff9b:1::808:808",
    "3fff::1",
    "100::1",
    "4000::1",
)
NEVER = [
    *METADATA,
    "0.0.0.1",
    "0.1.2.3",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "ff02::1",
    "fec0::1",
    "fe80::1",
    "fe80::1%eth0",
]
EVERYTHING = parse_networks("0.0.0.0/0, ::/0")

ipv4 = st.ip_addresses(v=4)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_may_be_reached(text: str) -> None:
    assert refusal(ip_address(text)) == ""


@pytest.mark.parametrize("text", [*PRIVATE, *NEVER])
def test_others_may_not(text: str) -> None:
    assert refusal(ip_address(text))


@pytest.mark.parametrize("text", NEVER)
def test_what_nobody_may_reach_is_not_the_operators_to_allow(text: str) -> None:
    assert refusal(ip_address(text), EVERYTHING)


@pytest.mark.parametrize("text", PRIVATE)
def test_a_private_network_is_the_operators_to_allow(text: str) -> None:
    assert refusal(ip_address(text), EVERYTHING) == ""


def test_only_the_network_that_was_allowed() -> None:
    allowed = parse_networks("10.20.0.0/16,127.0.0.0/8")
    assert refusal(IPv4Address("10.20.3.4"), allowed) == ""
    assert refusal(IPv4Address("10.21.3.4"), allowed)
    assert refusal(IPv6Address("::1"), allowed) == LOOPBACK
    assert refusal(IPv6Address("::ffff:127.0.0.1"), allowed) == ""


def mapped(address: IPv4Address) -> IPv6Address:
    return IPv6Address(f"::ffff:{address}")


def translated(address: IPv4Address) -> IPv6Address:
    return IPv6Address(int(IPv6Address("64:ff9b::")) | int(address))


def compatible(address: IPv4Address) -> IPv6Address:
    return IPv6Address(int(address))


@given(ipv4)
def test_ipv4_inside_ipv6_is_judged_as_itself(address: IPv4Address) -> None:
    plain = refusal(address)
    assert refusal(mapped(address)) == plain
    assert refusal(translated(address)) == plain
    if int(address) > 1:  # `::` and `::1` are no IPv4 address
        assert refusal(compatible(address)) == plain
    assert unwrapped(mapped(address)) == address


@given(ipv4)
def test_nothing_that_python_calls_not_global_is_public(address: IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert refusal(address)


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_outside_the_global_block_is_public(address: IPv6Address) -> None:
    if address not in ip_network("2000::/3") and unwrapped(address).version == 6:
        assert refusal(address)


@given(st.ip_addresses(v=6, network="2000::/3"))
def test_in_the_global_block_only_special_networks_are_refused(address: IPv6Address) -> None:
    special = ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
    is_special = any(address in IPv6Network(network) for network in special)
    assert bool(refusal(address)) == is_special


@given(ipv4, st.sampled_from([mapped, translated]))
def test_loopback_is_known_in_every_form(address: IPv4Address, form: object) -> None:
    assert callable(form)
    assert is_loopback(form(address)) == address.is_loopback


def test_a_host_that_is_an_address_is_told_from_a_name() -> None:
    assert literal("10.0.0.1") == IPv4Address("10.0.0.1")
    assert literal("::1") == IPv6Address("::1")
    for name in ("example.com", "0x7f.1", "127.1", "2130706433", "010.0.0.1", ""):
        assert literal(name) is None


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "home", "::/129"])
def test_a_network_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_networks(text)
