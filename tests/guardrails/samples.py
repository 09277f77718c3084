"""What detectors must find, drawn at random, and ordinary text that they must leave alone."""

from __future__ import annotations

import base64
import json
import string
import zlib

from hypothesis import strategies as st

ALNUM = string.ascii_letters + string.digits
URL_SAFE = ALNUM + "-_"

ORDINARY = st.text("abcdefghij klmnop,.\n", max_size=120)
"""Text without a digit, an upper-case letter or a sign that anything begins with."""


def chars(alphabet: str, least: int, most: int | None = None) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=most or least)


def _encoded(value: object) -> str:
    text = json.dumps(value, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def jwts() -> st.SearchStrategy[str]:
    header = st.sampled_from([{"alg": "RS256", "kid": "k1"}, {"typ": "JWT", "alg": "none"}])
    claims = st.fixed_dictionaries({"sub": chars(ALNUM, 1, 40)})
    return st.builds(
        lambda head, body, sign: f"{_encoded(head)}.{_encoded(body)}.{sign}",
        header,
        claims,
        chars(URL_SAFE, 0, 90),
    )


def remit_keys() -> st.SearchStrategy[str]:
    base32 = string.ascii_lowercase + "234567"

    def keyed(key_id: str, secret: str) -> str:
        body = f"rmt_{key_id}_{secret}"
        crc = base64.b32encode(zlib.crc32(body.encode()).to_bytes(4, "big")).decode()
        return f"{body}_{crc.rstrip('=').lower()}"

    return st.builds(keyed, chars(base32, 16), chars(base32, 52))


def private_keys() -> st.SearchStrategy[str]:
    label = st.sampled_from(["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
    lines = st.lists(chars(ALNUM + "+/", 64), max_size=20)
    return st.builds(
        lambda kind, body: "\n".join(
            [f"-----BEGIN {kind}PRIVATE KEY-----", *body, f"-----END {kind}PRIVATE KEY-----"]
        ),
        label,
        lines,
    )


def luhn(payload: str) -> str:
    total = 0
    for index, char in enumerate(reversed(payload)):
        digit = int(char) * (2 if index % 2 == 0 else 1)
        total += digit - 9 if digit > 9 else digit
    return payload + str(-total % 10)


def cards() -> st.SearchStrategy[str]:
    plain = st.builds(
        lambda first, rest: luhn(first + rest), st.sampled_from("3456"), chars(string.digits, 14)
    )
    spaced = plain.map(lambda n: " ".join(n[i : i + 4] for i in range(0, 16, 4)))
    return plain | spaced | spaced.map(lambda n: n.replace(" ", "-"))


def ibans() -> st.SearchStrategy[str]:
    def checked(country: str, account: str) -> str:
        number = "".join(str(int(char, 36)) for char in f"{account}{country}00")
        return f"{country}{98 - int(number) % 97:02d}{account}"

    plain = st.sampled_from([("DE", 18), ("FR", 23), ("BE", 12)]).flatmap(
        lambda of: st.builds(checked, st.just(of[0]), chars(string.digits, of[1]))
    )
    return plain | plain.map(lambda n: " ".join(n[i : i + 4] for i in range(0, len(n), 4)))


def emails() -> st.SearchStrategy[str]:
    label = chars(string.ascii_lowercase + string.digits, 1, 20)
    return st.builds(
        lambda local, hosts, top: f"{local}@{'.'.join(hosts)}.{top}",
        chars(ALNUM + "._%+-", 1, 64),
        st.lists(label, min_size=1, max_size=3),
        chars(string.ascii_lowercase, 2, 10),
    )


KINDS: dict[str, tuple[str, st.SearchStrategy[str]]] = {
    "private_key": ("secrets", private_keys()),
    "aws_key_id": (
        "secrets",
        chars(string.ascii_uppercase + string.digits, 16).map("AKIA{}".format),
    ),
    "github_token": (
        "secrets",
        chars(ALNUM, 36).map("ghp_{}".format)
        | st.builds("github_pat_{}_{}".format, chars(ALNUM, 22), chars(ALNUM, 59)),
    ),
    "slack_token": ("secrets", chars(ALNUM + "-", 10, 60).map("xoxb-{}".format)),
    "provider_key": ("secrets", chars(URL_SAFE, 20, 150).map("sk-proj-A1{}".format)),
    "jwt": ("secrets", jwts()),
    "remit_api_key": ("secrets", remit_keys()),
    "email": ("personal_data", emails()),
    "phone": ("personal_data", chars(string.digits, 7, 14).map("+4{}".format)),
    "iban": ("personal_data", ibans()),
    "card": ("personal_data", cards()),
    "ipv4": (
        "ip_addresses",
        st.ip_addresses(v=4).map(str),
    ),
    "ipv6": (
        "ip_addresses",
        st.ip_addresses(v=6).map(lambda address: address.exploded),
    ),
    "script_tag": ("suspicious_patterns", st.sampled_from(["<script>", "</ScRipt >", "< script"])),
    "javascript_url": ("suspicious_patterns", st.sampled_from(["javascript:", "JAVA\tscript :"])),
    "event_handler": (
        "suspicious_patterns",
        chars(string.ascii_lowercase, 0, 1_500).map(lambda name: f"<a {name} onclick=x>"),
    ),
}
"""Detector and samples by kind."""

BENIGN = [
    "Is 3 < 4 and one = two?",
    "describe the word script",
    "if a < b then on = 1",
    "JavaScript is a language",
    "<p>on the one hand</p>",
    "git commit 3f786850e387550fdab836ed7e6dc881de23001b, sha256:" + "ab" * 32,
    "uuid 0198a5b0-0000-7000-8000-000000000000 of runs/0198a5b0",
    "sk-learn-style-estimators-are-documented-here",
    "kwargs **options, user @home, a@b, @decorator, x@y.z",
    "2026-11-30T00:43:27Z, 1790000000000 ms, version 1.2.3, 10.5.3",
    "call 555-0100, order 12345678, invoice +12",
    "the key rmt_aaaaaaaaaaaaaaaa_" + "b" * 52 + "_aaaaaaa has a wrong checksum",
    "4111 1111 1111 1112 fails Luhn; DE00 3704 0044 0532 0130 00 fails mod 97",
    "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "std::vector<int>::iterator and a::b::c",
    "AKIA is how they begin, and eyJ is how those do; ghp_short xoxb-1",
    "Füße & Öl, naïve café, 日本語のテキスト, 👩‍💻",
]
