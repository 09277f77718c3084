"""The detectors that Remit has.

Each pattern is bounded, so none takes more than a fixed time a character, and begins where what it
looks for can begin: not within a word. What has a checksum is found only if it is right.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import zlib
from collections.abc import Iterator
from typing import Final

from remit.guardrails.detector import Detector, Pattern, Tail

SUSPICIOUS_PATTERNS: Final = "suspicious_patterns"
SECRETS: Final = "secrets"
PERSONAL_DATA: Final = "personal_data"
IP_ADDRESSES: Final = "ip_addresses"

_IBAN_CHARS: Final = {
    country: int(length)
    for length, *countries in map(
        str.split,
        (
            "15 NO",
            "16 BE",
            "18 DK FO FI GL NL SD FK",
            "19 MK SI",
            "20 AT BA EE XK KZ LT LU MN",
            "21 HR LV LI CH",
            "22 BH BG CR GE DE IE ME RS GB VA",
            "23 GI IL IQ OM SO TL AE",
            "24 AD CZ MD PK RO SA SK ES SE TN VG",
            "25 LY PT ST",
            "26 IS TR",
            "27 BI DJ FR GR IT MR MC SM",
            "28 AL AZ BY CY DO GT HU LB NI PL SV",
            "29 BR EG PS QA UA",
            "30 JO KW MU YE",
            "31 MT SC",
            "33 LC RU",
        ),
    )
    for country in countries
}
"""Length of an IBAN by its country (ISO 13616)."""
_CARD_DIGITS: Final = range(13, 20)
_MIN_IPV6_GROUPS: Final = 3


def _run(chars: str) -> Tail:
    """A tail of any length of these characters."""
    return Tail(re.compile(f"[^{chars}]"), window=1, is_included=False)


def _may_end(text: str, end: int) -> bool:
    return text[end - 1].isalnum() and not text[end : end + 1].isalnum()


def card_length(match: str) -> int:
    """How much of it is a payment card's number, the longest that may be; 0: nothing."""
    ends = (end for end in range(len(match), 0, -1) if _may_end(match, end))
    return next((end for end in ends if is_card(match[:end])), 0)


def is_card(text: str) -> bool:
    """Whether its digits are those of a payment card: its length, and Luhn's checksum."""
    digits = [int(char) for char in text if char.isdigit()]
    if len(digits) not in _CARD_DIGITS:
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban_length(match: str) -> int:
    """How much of it is an IBAN, by its country's length and its checksum; 0: nothing."""
    chars = _IBAN_CHARS.get(match[:2], 0)
    ends = [at + 1 for at, char in enumerate(match) if char != " "]
    if not chars or len(ends) < chars or not _may_end(match, ends[chars - 1]):
        return 0
    plain = match[: ends[chars - 1]].replace(" ", "")
    number = int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4]))
    return ends[chars - 1] if number % 97 == 1 else 0


def is_remit_key(text: str) -> bool:
    """Whether its checksum is that of an API key of Remit (`remit.policy.api_keys`)."""
    body, _, checksum = text.rpartition("_")
    expected = base64.b32encode(zlib.crc32(body.encode()).to_bytes(4, "big"))
    return checksum == expected.decode().rstrip("=").lower()


def _is_key(text: str) -> bool:
    """Whether it is no word in small letters: file names begin like keys of providers."""
    return any(char.isdigit() or char.isupper() for char in text)


def _ipv4(match: str) -> int:
    return _if(_is_address(match, ipaddress.IPv4Address), match)


def _ipv6(match: str) -> int:
    groups = sum(map(bool, match.split(":")))
    is_long = groups >= _MIN_IPV6_GROUPS  # `a::b` is a name in more than one language
    return _if(is_long and _is_address(match, ipaddress.IPv6Address), match)


def _is_address(text: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _if(is_right: bool, match: str) -> int:  # noqa: FBT001 - reads as it is said
    return len(match) if is_right else 0


def _jwt_begins() -> Iterator[str]:
    """How tokens begin: the first name of a JOSE header, in base64."""
    for name in ("alg", "typ", "kid", "enc", "cty", "jku", "x5t", "x5c", "x5u", "zip", "b64"):
        yield base64.b64encode(f'{{"{name}":'.encode()).decode()[:9]


# Browsers ignore control characters inside `javascript:`, and lenient parsers ignore spaces between
# `<` and `script`.
_SUSPICIOUS: Final = Detector(
    SUSPICIOUS_PATTERNS,
    (
        Pattern(
            "script_tag",
            "contains a script tag",
            re.compile(r"<[\s/]{0,32}script\b", re.IGNORECASE),
            window=40,
        ),
        Pattern(
            "javascript_url",
            "contains a javascript: address",
            re.compile(
                "[\\x00-\\x1f]{0,8}".join("javascript") + r"[\x00-\x20]{0,8}:", re.IGNORECASE
            ),
            window=10 + 9 * 8 + 8 + 1,
        ),
        Pattern(
            "event_handler",
            "contains an inline event handler",
            re.compile(r"<[^<>]{0,2000}?[\s/\"']on[a-z]{2,30}\s{0,32}=", re.IGNORECASE),
            window=1 + 2000 + 1 + 32 + 32 + 1,
        ),
    ),
)

_KEY_END: Final = re.compile(r"-----END (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_SECRETS: Final = Detector(
    SECRETS,
    (
        Pattern(
            "private_key",
            "contains a private key",
            re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
            window=11 + 3 * 17 + 11 + 6 + 5,
            tail=Tail(_KEY_END, window=9 + 3 * 17 + 11 + 6 + 5, is_included=True),
        ),
        Pattern(
            "aws_key_id",
            "contains an AWS access key id",
            re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
            window=21,
        ),
        Pattern(
            "github_token",
            "contains a GitHub token",
            re.compile(
                r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22})"
            ),
            window=40,
            tail=_run("A-Za-z0-9_"),
        ),
        Pattern(
            "slack_token",
            "contains a Slack token",
            re.compile(r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10}"),
            window=15,
            tail=_run("A-Za-z0-9-"),
        ),
        Pattern(
            "provider_key",
            "contains an API key of a model provider",
            re.compile(r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20}"),
            window=23,
            length=lambda match: _if(_is_key(match), match),
            tail=_run("A-Za-z0-9_-"),
        ),
        Pattern(
            "jwt",
            "contains a JSON Web Token",
            re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(_jwt_begins())})[A-Za-z0-9_-]{{8}}"),
            window=17,
            tail=_run("A-Za-z0-9_.=-"),
        ),
        Pattern(
            "remit_api_key",
            "contains an API key of Remit",
            re.compile(r"(?<![A-Za-z0-9])rmt_[a-z2-7]{16}_[a-z2-7]{52}_[a-z2-7]{7}"),
            window=81,
            length=lambda match: _if(is_remit_key(match), match),
        ),
    ),
)

_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\."
_PERSONAL: Final = Detector(
    PERSONAL_DATA,
    (
        Pattern(
            "email",
            "contains an e-mail address",
            re.compile(
                rf"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{{1,64}}@(?:{_LABEL}){{1,3}}[A-Za-z]{{2,24}}"
            ),
            window=64 + 1 + 3 * 64 + 24,
        ),
        Pattern(
            "phone",
            "contains a phone number",
            re.compile(r"(?<![\w+])\+[1-9](?:[ .()/-]{0,2}[0-9]){6,14}(?![0-9])"),
            window=2 + 14 * 3 + 1,
        ),
        Pattern(
            "iban",
            "contains an IBAN",
            re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])"),
            window=4 + 30 * 2 + 1,
            length=iban_length,
        ),
        Pattern(
            "card",
            "contains a payment card number",
            re.compile(r"(?<![0-9])[2-6](?:[ -]?[0-9]){12,18}(?![0-9])"),
            window=1 + 18 * 2 + 1,
            length=card_length,
        ),
    ),
)

_ADDRESSES: Final = Detector(
    IP_ADDRESSES,
    (
        Pattern(
            "ipv4",
            "contains an IPv4 address",
            re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])"),
            window=15 + 2,
            length=_ipv4,
        ),
        Pattern(
            "ipv6",
            "contains an IPv6 address",
            re.compile(r"(?<![A-Za-z0-9:._])[0-9A-Fa-f:]{6,39}(?![A-Za-z0-9:_])"),
            window=39 + 1,
            length=_ipv6,
        ),
    ),
)

BUILT_IN: Final = {each.name: each for each in (_SUSPICIOUS, _SECRETS, _PERSONAL, _ADDRESSES)}
"""By name."""
