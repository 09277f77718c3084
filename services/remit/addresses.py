"""Which addresses of the network a service may be sent to by somebody else's URL.

A URL that a client gives must not reach what only the service itself can: its own machine, its
private networks, the metadata service of its cloud. Pure: whoever connects resolves a name once,
asks here about every address, and connects to one that was asked about. The list is the special
purpose registries of IANA (RFC 6890, IPv4 and IPv6), and what clouds put beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

LOOPBACK: Final = "is this machine's own (loopback)"

_NEVER: Final[tuple[tuple[str, str], ...]] = (
    ("0.0.0.0/8", "is of no host"),
    ("169.254.0.0/16", "is link-local, where clouds have their metadata"),
    ("168.63.129.16/32", "is a cloud's own service"),
    ("192.0.0.0/24", "is a protocol's or a cloud's own service"),
    ("100.100.100.200/32", "is a cloud's metadata"),
    ("224.0.0.0/4", "is multicast"),
    ("240.0.0.0/4", "is reserved"),
    ("::/128", "is of no host"),
    ("fe80::/10", "is link-local, where clouds have their metadata"),
    ("fec0::/10", "is site-local"),
    ("fd00:ec2::/32", "is a cloud's metadata"),
    ("fd20:ce::254/128", "is a cloud's metadata"),
    ("ff00::/8", "is multicast"),
)
"""Refused whatever the operator allows."""

_PRIVATE: Final[tuple[tuple[str, str], ...]] = (
    ("127.0.0.0/8", LOOPBACK),
    ("10.0.0.0/8", "is private"),
    ("100.64.0.0/10", "is shared by a carrier or a cloud"),
    ("172.16.0.0/12", "is private"),
    ("192.0.2.0/24", "is for examples"),
    ("192.31.196.0/24", "has a special purpose"),
    ("192.52.193.0/24", "has a special purpose"),
    ("192.88.99.0/24", "has a special purpose"),
    ("192.168.0.0/16", "is private"),
    ("192.175.48.0/24", "has a special purpose"),
    ("198.18.0.0/15", "is for measurements"),
    ("198.51.100.0/24", "is for examples"),
    ("203.0.113.0/24", "is for examples"),
    ("::1/128", LOOPBACK),
    ("64:ff9b:1::/48", "leads to a private translator"),
    ("100::/64", "is a black hole"),
    ("100:0:0:1::/64", "has a special purpose"),
    ("2001::/23", "has a special purpose"),
    ("2001:db8::/32", "is for examples"),
    ("2002::/16", "leads through a tunnel"),
    ("2620:4f:8000::/48", "has a special purpose"),
    ("3fff::/20", "is for examples"),
    ("5f00::/16", "has a special purpose"),
    ("fc00::/7", "is private"),
)
"""Refused unless the operator allows a network that holds it."""

_GLOBAL_IPV6: Final = ip_network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_COMPATIBLE: Final = IPv6Network("::/96")


def refusal(address: Address, allowed: Iterable[Network] = ()) -> str:
    """Why nothing is sent to an address, to be read after its name; empty if it may be.

    `allowed` are networks of the operator's own that may be reached besides the public ones.
    """
    plain = unwrapped(address)
    for network, why in _NETWORKS_NEVER:
        if plain in network:
            return why
    if any(plain in network for network in allowed):
        return ""
    for network, why in _NETWORKS_PRIVATE:
        if plain in network:
            return why
    if plain.version == 6 and plain not in _GLOBAL_IPV6:
        return "is not public"
    return ""


def unwrapped(address: Address) -> Address:
    """The address that packets end at: IPv4 inside IPv6 (mapped, compatible, NAT64) as itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    low = int(address) & 0xFFFF_FFFF
    if address in _NAT64 or (address in _COMPATIBLE and low > 1):
        return IPv4Address(low)
    # A scope names an interface of this machine and no other address.
    return IPv6Address(int(address))


def literal(host: str) -> Address | None:
    """The address that a URL's host is, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def is_loopback(address: Address) -> bool:
    """Whether it is this machine's own."""
    return unwrapped(address).is_loopback


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR form, separated by commas. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def _networks(table: Iterable[tuple[str, str]]) -> tuple[tuple[Network, str], ...]:
    return tuple((ip_network(text), why) for text, why in table)


_NETWORKS_NEVER: Final = _networks(_NEVER)
_NETWORKS_PRIVATE: Final = _networks(_PRIVATE)
