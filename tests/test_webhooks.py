"""Which URLs a webhook may have, and which calls are a delivery's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.addresses import parse_networks
from remit.webhooks import MAX_URL_CHARS, Target, call_key, is_call_key, parse_url

LOOPBACK = parse_networks("127.0.0.0/8")


def https(host: str, port: int, path: str) -> Target:
    return Target(is_tls=True, host=host, port=port, path=path)


RUN = "runs/01981a2b-3c4d-7e5f-8a9b-0c1d2e3f4a5b"


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://example.com", https("example.com", 443, "/"), "example.com"),
        (
            "https://Example.COM:8443/a/b?c=d&e=%2F",
            https("example.com", 8443, "/a/b?c=d&e=%2F"),
            "example.com:8443",
        ),
        ("https://example.com:443/x", https("example.com", 443, "/x"), "example.com"),
        ("HTTPS://1.1.1.1/", https("1.1.1.1", 443, "/"), "1.1.1.1"),
        (
            "https://[2606:4700:4700::1111]:444/",
            https("2606:4700:4700::1111", 444, "/"),
            "[2606:4700:4700::1111]:444",
        ),
        ("https://xn--bcher-kva.example/", https("xn--bcher-kva.example", 443, "/"), ""),
    ],
)
def test_a_public_https_url_is_taken(url: str, target: Target, authority: str) -> None:
    assert parse_url(url) == target
    assert target.authority == (authority or target.host)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", "characters"),
        ("https://example.com/" + "a" * MAX_URL_CHARS, "characters"),
        ("example.com/hook", "https://"),
        ("http://example.com/", "must begin with https://"),
        ("ftp://example.com/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("javascript:alert(1)", "must begin with https://"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://alice:secret@example.com/", "no user"),
        ("https://alice@example.com/", "no user"),
        ("https://example.com/#there", "no fragment"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "port"),
        ("https://example.com:x/", "port"),
        ("https://[::1/", "ASCII|port"),
        ("https://exa mple.com/", "ASCII"),
        ("https://exam\nple.com/", "ASCII"),
        ("https://example.com\\@evil.example/", "ASCII"),
        ("https://bücher.example/", "ASCII"),
        ("https://127.0.0.1/", "loopback"),
        ("https://[::1]/", "loopback"),
        ("https://[::ffff:127.0.0.1]/", "loopback"),
        ("https://localhost/", "machine itself"),
        ("https://api.localhost:8443/", "machine itself"),
        ("http://localhost/", "machine itself"),
        ("https://10.1.2.3/", "private"),
        ("https://169.254.169.254/latest/meta-data/", "link-local"),
        ("https://[fe80::1]/", "link-local"),
        ("https://0x7f.1/", "no host"),
        ("https://127.1/", "no host"),
        ("https://2130706433/", "no host"),
        ("https://0177.0.0.1/", "no host"),
        ("https://a..b/", "no host"),
        ("https://-a.example/", "no host"),
    ],
)
def test_another_url_is_refused_with_what_is_wrong(url: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_url(url)


def test_http_is_for_a_loopback_that_the_operator_allows() -> None:
    assert parse_url("http://127.0.0.1:8080/x", LOOPBACK) == Target(
        is_tls=False, host="127.0.0.1", port=8080, path="/x"
    )
    assert not parse_url("http://localhost/", LOOPBACK).is_tls
    assert parse_url("https://localhost/", LOOPBACK).is_tls
    for url in ("http://example.com/", "http://1.1.1.1/", "http://10.0.0.1/"):
        with pytest.raises(ValueError, match=r"https://|private"):
            parse_url(url, LOOPBACK)


@given(st.text(max_size=60))
def test_whatever_comes_is_taken_or_refused(rest: str) -> None:
    for url in (rest, f"https://{rest}", f"https://example.com/{rest}", f"http://{rest}"):
        try:
            target = parse_url(url)
        except ValueError:
            continue
        assert target.is_tls
        assert target.host == target.host.lower()
        assert 1 <= target.port <= 65_535
        assert not set(target.path) & set(" \r\n")
        assert target.path.startswith("/")


def test_the_key_of_a_delivery_is_its_runs_alone() -> None:
    key = call_key(RUN, 3)
    assert is_call_key(key, RUN)
    assert not is_call_key(key, RUN.replace("5b", "5c"))
    assert not is_call_key(f"{RUN}/steps/1/tools/c0", RUN)
    assert not is_call_key("/webhook/1", "")
