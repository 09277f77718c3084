"""Screening: every violation at once, nothing found repeated, nested texts and names included."""

from __future__ import annotations

from google.protobuf import json_format, struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.guardrails import Direction, Rules, Screening, find
from remit.guardrails.metrics import FINDINGS
from remit.rpc.errors import RemitError
from tests.guardrails.samples import KINDS

KEY = "AKIAIOSFODNN7EXAMPLE"
MAIL = "alice@example.com"
SECRET = st.one_of([samples for of, samples in KINDS.values() if of == "secrets"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text("ab", max_size=3) | SECRET,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("cd", max_size=3) | SECRET, inner, max_size=3)
    ),
    max_leaves=8,
)


def screening(line: str, direction: Direction = Direction.INPUT) -> Screening:
    return Screening(Rules.of(line, ""), direction)


def test_all_that_is_refused_is_told_at_once_and_not_repeated() -> None:
    looking = screening("secrets.input=refuse, personal_data.input=refuse, ip_addresses.input=flag")
    looking.text("a", f"{KEY} and {KEY}, {MAIL}")
    looking.text("b", f"{KEY} at 10.0.0.1")
    error = looking.refusal()
    assert error is not None
    assert error.reason == reasons.ERROR_REASON_SUSPICIOUS_INPUT
    assert {(v.field, v.description) for v in error.violations} == {
        ("a", "contains an AWS access key id"),
        ("a", "contains an e-mail address"),
        ("b", "contains an AWS access key id"),
    }
    assert error.metadata == {
        "direction": "input",
        "detectors": "personal_data,secrets",
        "kinds": "aws_key_id,email",
    }
    told = str((error.to_status(), looking.notes))
    assert KEY not in told
    assert MAIL not in told
    assert looking.notes == {
        "flag ip_addresses.ipv4": 1,
        "refuse personal_data.email": 1,
        "refuse secrets.aws_key_id": 3,
    }


def test_output_is_refused_by_a_reason_of_its_own() -> None:
    looking = screening("secrets.output=refuse", Direction.OUTPUT)
    looking.text("message.text", KEY)
    error = looking.refusal()
    assert error is not None
    assert error.reason == reasons.ERROR_REASON_OUTPUT_REFUSED
    assert error.metadata["direction"] == "output"


def test_what_is_flagged_stays_and_is_counted() -> None:
    looking = screening("secrets.input=flag")
    series = FINDINGS.labels("secrets", "input", "flag")
    before = series._value.get()
    assert looking.text("a", KEY) == KEY
    assert looking.refusal() is None
    looking.count("test")
    assert series._value.get() == before + 1


@given(JSON)
def test_no_text_and_no_name_of_a_struct_keeps_what_is_replaced(value: object) -> None:
    struct = struct_pb2.Struct()
    json_format.ParseDict({"value": value}, struct)
    clean = screening("secrets.input=redact").struct("arguments", struct)
    assert find(json_format.MessageToJson(clean, ensure_ascii=False), "secrets") == []
    if not find(json_format.MessageToJson(struct, ensure_ascii=False), "secrets"):
        assert clean == struct


def test_names_that_become_the_same_are_kept_apart() -> None:
    struct = struct_pb2.Struct()
    struct.update({KEY: 1, "AKIAIOSFODNN8EXAMPLE": 2, "[aws_key_id]": 3})
    clean = screening("secrets.input=redact").struct("arguments", struct)
    assert sorted(str(value) for value in clean.values()) == ["1.0", "2.0", "3.0"]
    assert clean["[aws_key_id]"] == 3


EMAILS = st.integers(0, 300).map("a{}@b.co".format)
KEYS = st.lists(st.one_of(EMAILS, st.text("a*1[email]", max_size=8)), unique=True, max_size=60)


@given(KEYS)
def test_names_stay_apart_and_are_no_longer_than_they_were(keys: list[str]) -> None:
    struct = struct_pb2.Struct()
    for number, key in enumerate(keys):
        struct.fields[key].number_value = number
    clean = screening("personal_data.input=redact").struct("arguments", struct)
    assert sorted(value.number_value for value in clean.fields.values()) == [*range(len(keys))]
    assert sum(map(len, clean.fields)) <= sum(map(len, keys))
    assert not any(find(name, "personal_data") for name in clean.fields)
    again = screening("personal_data.input=redact").struct("arguments", struct)
    assert again == clean
    for number, key in enumerate(keys):
        if not find(key, "personal_data"):
            assert clean.fields[key].number_value == number


def test_many_names_that_become_the_same_take_no_more_room() -> None:
    struct = struct_pb2.Struct()
    for number in range(5_000):
        struct.fields[f"a{number}@b.co"].number_value = number
    clean = screening("personal_data.input=redact").struct("arguments", struct)
    assert len(clean.fields) == len(struct.fields)
    assert clean.ByteSize() <= struct.ByteSize()


def test_an_error_that_quotes_is_cleaned_and_stays_that_error() -> None:
    looking = screening("secrets.output=refuse", Direction.OUTPUT)
    quoting = RemitError(reasons.ERROR_REASON_TOOL_FAILED, f"wrong key {KEY}")
    assert looking.error(quoting).message == "wrong key [aws_key_id]"
    assert quoting.reason == reasons.ERROR_REASON_TOOL_FAILED
    assert looking.refusal() is None
