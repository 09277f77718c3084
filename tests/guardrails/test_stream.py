"""Streams: whatever the pieces, what goes on is that of the whole, and nothing found is in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit.guardrails import BUILT_IN, StreamFilter
from remit.guardrails.detector import Detector
from remit.guardrails.stream import may_find
from tests.guardrails.samples import KINDS, ORDINARY

ALL = list(BUILT_IN.values())
FOUND = st.one_of([samples for _, samples in KINDS.values()])
# Begins and ends of what is looked for, what hides it, and what stands between.
SHARDS = st.sampled_from(
    [
        "<scr", "ipt", "<", ">", " onload", "=", "javasc", "ript:", "&", "&#", "60;", "&lt;", "lt;",
        "\u200b", "\ufdfa", "\uff1c", "-----BEGIN ", "RSA ", "PRIVATE KEY-----", "-----END ",
        "AKIA", "IOSFODNN7EXAMPLE", "ghp_", "a" * 36, "eyJhbGciOi", ".", "@", "example.com", "+49",
        " ", "4111", "1111", "DE89", "3704", "1.2.", "3.4", "2001:db8:", ":", "sk-", "A1b2",
        "xoxb-", "\n", "\u338f",
    ]
)  # fmt: skip
TEXTS = st.lists(st.one_of(SHARDS, FOUND, ORDINARY, st.text(max_size=5)), max_size=14).map("".join)


def whole(text: str, detectors: list[Detector]) -> tuple[str, StreamFilter]:
    stream = StreamFilter(detectors)
    return stream.feed(text) + stream.finish(), stream


@settings(max_examples=200)
@given(TEXTS, st.data())
def test_any_pieces_give_what_the_whole_gives(text: str, data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from([ALL, *([each] for each in ALL)]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    at_once, reference = whole(text, chosen)
    stream = StreamFilter(chosen)
    pieces = [
        stream.feed(text[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]
    assert "".join([*pieces, stream.finish()]) == at_once
    key = lambda f: (f.start, f.end, f.kind)  # noqa: E731 - of both
    assert sorted(stream.findings, key=key) == sorted(reference.findings, key=key)


@settings(max_examples=100)
@given(TEXTS)
def test_a_text_letter_by_letter_gives_what_the_whole_gives(text: str) -> None:
    stream = StreamFilter(ALL)
    assert "".join([*map(stream.feed, text), stream.finish()]) == whole(text, ALL)[0]


@settings(max_examples=100)
@given(ORDINARY, FOUND, ORDINARY, st.integers(1, 9))
def test_nothing_found_goes_on(before: str, sample: str, after: str, size: int) -> None:
    text = f"{before} {sample} {after}"
    stream = StreamFilter(ALL)
    pieces = [stream.feed(text[at : at + size]) for at in range(0, len(text), size)]
    out = "".join([*pieces, stream.finish()])
    assert sample not in out
    assert stream.findings
    for finding in stream.findings:
        assert text[finding.start : finding.end] not in out
    assert len(out) <= len(text)
    assert len(out.encode()) <= len(text.encode())


@given(TEXTS)
def test_what_is_not_found_is_not_touched(text: str) -> None:
    out, stream = whole(text, ALL)
    if not stream.findings:
        assert out == text


@settings(max_examples=200)
@given(st.one_of(TEXTS, ORDINARY, FOUND), st.sets(st.sampled_from(sorted(BUILT_IN))))
def test_what_may_hold_nothing_holds_nothing(text: str, names: set[str]) -> None:
    detectors = [BUILT_IN[name] for name in sorted(names)]
    if not may_find(detectors, text):
        assert whole(text, detectors)[0] == text
        assert whole(text, detectors)[1].findings == []


def test_ordinary_text_is_not_looked_at_twice() -> None:
    assert not may_find(ALL, "the harbour moves 1,204 crates a day (2026)")
    assert not may_find([], "AKIAIOSFODNN7EXAMPLE")


@pytest.mark.parametrize("detector", ALL, ids=lambda each: each.name)
@given(text=st.text("ab 1.-", max_size=3_000), size=st.integers(1, 50))
def test_no_more_than_a_window_is_held_back(detector: Detector, text: str, size: int) -> None:
    stream = StreamFilter([detector])
    gone = 0
    for at in range(0, len(text), size):
        gone += len(stream.feed(text[at : at + size]))
        held = min(at + size, len(text)) - gone
        replaced = sum(f.end - f.start for f in stream.findings)
        assert held <= detector.window + replaced


def test_a_long_secret_holds_back_nothing_and_shows_nothing() -> None:
    stream = StreamFilter([BUILT_IN["secrets"]])
    out = stream.feed("the key is -----BEGIN RSA PRIVATE KEY-----\n" + "x" * 200)
    assert out == "the key is [private_key]"
    assert stream.feed("MIIE" * 1_000) == ""
    assert stream.feed("\n-----END RSA PRIVATE KEY----- and more. " + "y" * 300).startswith(
        " and more."
    )
