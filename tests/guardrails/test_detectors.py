"""Detectors: what they find wherever it stands and however it is hidden, and what they leave."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.guardrails import BUILT_IN, find
from remit.policy.api_keys import Pepper
from tests.guardrails.samples import BENIGN, KINDS, ORDINARY


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), before=ORDINARY, after=ORDINARY)
def test_what_a_detector_is_for_is_found_wherever_it_stands(
    kind: str, data: st.DataObject, before: str, after: str
) -> None:
    detector, samples = KINDS[kind]
    sample = data.draw(samples)
    text = f"{before} {sample} {after}"
    found = [f for f in find(text, detector) if f.kind == kind]
    begin = len(before) + 1
    assert any(
        f.start <= begin + 1 and f.end >= begin + len(sample.rstrip(" -")) - 4 for f in found
    )


def test_every_pattern_has_samples() -> None:
    patterns = {p.kind: d.name for d in BUILT_IN.values() for p in d.patterns}
    assert patterns == {kind: detector for kind, (detector, _) in KINDS.items()}


@pytest.mark.parametrize("text", BENIGN)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert find(text) == []


@given(ORDINARY)
def test_words_are_left_alone(text: str) -> None:
    assert find(text) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<SCRIPT src=x>", "script_tag"),
        ("\uff1cscript\uff1e", "script_tag"),
        ("&lt;script&gt;", "script_tag"),
        ("&#60;scr\u200bipt>", "script_tag"),
        ("&#x3c;\u00adscript>", "script_tag"),
        ("java\u200b\u200dscript:x", "javascript_url"),
        ("&#106;avascript&colon;x", "javascript_url"),
        ("<img src=x &#111;nerror=y>", "event_handler"),
        ("ali\u200bce&commat;example.com", "email"),
        ("\uff14\uff11\uff11\uff11 1111 1111 1111", "card"),
        ("AKIA\u2060IOSFODNN7EXAMPLE", "aws_key_id"),
    ],
)
def test_what_hides_itself_is_found(text: str, kind: str) -> None:
    (found,) = find(text)
    assert (found.kind, found.start <= 9, found.end <= len(text)) == (kind, True, True)


def test_a_key_that_remit_makes_is_found() -> None:
    key = Pepper(b"pepper").derive(b"request").text
    (found,) = find(f"my key: {key}.")
    assert (found.detector, found.kind) == ("secrets", "remit_api_key")
    assert (found.start, found.end) == (8, 8 + len(key))
    assert not find(f"my key: {key[:-1]}{'a' if key[-1] != 'a' else 'b'}")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4111 1111 1111 1111 123", "4111 1111 1111 1111"),
        ("1234 4111111111111111", "4111111111111111"),
        ("DE89 3704 0044 0532 0130 00 MAIN ST", "DE89 3704 0044 0532 0130 00"),
        ("write to a.b+c@mail.example.com.", "a.b+c@mail.example.com"),
        ("+49 (0) 30 123456-7", "+49 (0) 30 123456-7"),
    ],
)
def test_a_finding_is_exactly_what_was_looked_for(text: str, found: str) -> None:
    (one,) = find(text)
    assert text[one.start : one.end] == found


def test_a_private_key_without_an_end_takes_the_rest() -> None:
    text = "key: -----BEGIN PRIVATE KEY-----\nMIIE and so on"
    (found,) = find(text)
    assert (found.start, found.end) == (5, len(text))


@pytest.mark.parametrize(
    "part",
    [
        "<",
        "< ",
        "<a onx ",
        "j\x01",
        "-----BEGIN ",
        "-----BEGIN PRIVATE KEY-----",
        "a",
        "a.",
        "a@",
        "a@a.",
        "1 ",
        "4",
        "4 ",
        "+1 ",
        "AA11 ",
        "A1",
        "eyJ",
        "rmt_",
        "1.1.",
        "a:",
        "&",
        "&#",
        "&#1;",
        "\u200b",
        "\ufdfa",
        "sk-a",
    ],
)
def test_no_text_takes_long(part: str) -> None:
    """Twice the text takes about twice the time: a bound for the machine, far below a square's."""
    text = part * (100_000 // len(part))
    began = time.process_time()
    find(text)
    assert time.process_time() - began < 5
