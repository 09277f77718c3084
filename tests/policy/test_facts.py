"""Facts about arguments: what a policy compares must not depend on how a path is spelt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.policy.facts import MAX_VALUES, facts_of, normalise_path


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("a/b", "/a/b"),
        ("/a//b/./c/", "/a/b/c"),
        ("/reports/../etc/passwd", "/etc/passwd"),
        ("a\\b\\..\\c", "/a/c"),
        ("", "/"),
        ("../x", None),
        ("/a/../../x", None),
        ("a\x00b", None),
        ("a" * 5000, None),
        ("a/" * 40, None),
    ],
)
def test_paths_are_rooted_and_what_cannot_be_trusted_is_none(path: str, normal: str | None) -> None:
    assert normalise_path(path) == normal


@given(st.text(alphabet="ab./\\", max_size=60))
def test_a_normal_path_has_nothing_left_to_resolve(path: str) -> None:
    normal = normalise_path(path)
    if normal is not None:
        assert normal.startswith("/")
        assert not {"", ".", ".."} & set(normal.split("/")[1:]) or normal == "/"
        assert normalise_path(normal) == normal


@pytest.mark.parametrize(
    "path",
    [
        "../etc/passwd",
        "/reports/../../etc/passwd",
        "%2e%2e/etc",
        "%252e%252e%252fetc",
        "．．/etc",  # noqa: RUF001 - full-width dots are the point
        "..\\etc",
        "..%5cetc",
    ],
)
def test_every_spelling_of_an_escape_is_seen(path: str) -> None:
    assert facts_of({"path": path}).path_escapes
    assert facts_of({"x": {"y": [path]}}).path_escapes


def test_a_path_inside_another_folder_is_never_taken_for_one_below_reports() -> None:
    facts = facts_of({"path": "/reports/../secret/x"})
    assert facts.common_path == "/secret/x"
    assert "/reports" not in facts.path_prefixes
    assert {"/secret", "/secret/x"} <= facts.path_prefixes


def test_the_common_folder_holds_every_path_in_every_reading() -> None:
    facts = facts_of({"paths": ["/reports/2026/a.md", "/reports/2025/b.md"]})
    assert facts.common_path == "/reports"
    assert facts_of({"paths": ["/reports/a", "/secret/b"]}).common_path == "/"
    decoded = facts_of({"path": "/reports/%2e%2e/secret"})
    assert decoded.common_path == "/"
    assert "/secret" in decoded.path_prefixes


@given(st.lists(st.text(alphabet="abc/.", max_size=12), min_size=1, max_size=5))
def test_every_path_is_below_the_common_folder(paths: list[str]) -> None:
    facts = facts_of({"path": paths})
    for path in paths:
        normal = normalise_path(path)
        if normal is not None:
            assert normal in facts.path_prefixes
            assert (normal + "/").startswith(facts.common_path.rstrip("/") + "/")


def test_hosts_and_mail_domains_are_compared_without_case() -> None:
    facts = facts_of(
        {
            "url": "HTTPS://User@Example.COM:8443/x",
            "to": ["Bob <bob@ACME.com>", "eve@evil.example."],
            "note": "hello there",
        }
    )
    assert facts.hosts == {"example.com"}
    assert {"acme.com", "evil.example"} <= facts.mail_domains
    assert facts.common_path == ""


def test_an_unreadable_url_is_a_host_that_no_rule_allows() -> None:
    assert facts_of({"url": "http://[oops"}).hosts == {"invalid"}


def test_more_values_than_are_looked_at_make_the_facts_incomplete() -> None:
    assert not facts_of({"x": ["a"] * MAX_VALUES}).incomplete
    assert facts_of({"x": ["a"] * (MAX_VALUES + 1)}).incomplete
    assert facts_of({"x": [f"/{'a' * 1000}"] * 100}).incomplete


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_no_arguments_break_the_facts(arguments: dict[str, object]) -> None:
    facts_of(arguments).to_cedar()


def test_long_text_without_structure_is_read_in_linear_time() -> None:
    facts = facts_of({"content": "a" * 1_000_000, "more": "a@" * 200_000})
    assert not facts.incomplete
