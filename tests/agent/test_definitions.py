"""Agent definitions: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit.agent.definitions import AgentCatalog, AgentDefinition, load_catalog, parse_definition
from remit.api.errors.v1 import error_reason_pb2 as reasons
from remit.rpc.errors import RemitError

MINIMAL = """\
name: helper
display_name: Helper
description: Helps.
instructions: Help.
model: builtin-rules
"""


def refused(text: str) -> RemitError:
    with pytest.raises(RemitError) as caught:
        parse_definition(text, "helper.yaml")
    assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID
    return caught.value


def test_the_shipped_agents_load() -> None:
    catalog = load_catalog(None)
    assert [agent.name for agent in catalog.all()] == [
        "assistant",
        "clerk",
        "coordinator",
        "researcher",
    ]
    assert catalog.get("agents/assistant").tool_names == (
        "tools/calculator",
        "tools/clock",
        "tools/read_file",
        "tools/search",
    )


def test_an_unknown_field_is_named_with_its_file_line_and_neighbour() -> None:
    error = refused(MINIMAL + "toolz: [search]\n")
    assert "helper.yaml:6: toolz: unknown field; did you mean tools?" in error.message


def test_every_fault_is_reported_at_once() -> None:
    error = refused(MINIMAL.replace("name: helper", "name: Not A Name") + "max_steps: 0\n")
    assert {v.field for v in error.violations} == {
        "helper.yaml:1: name",
        "helper.yaml:6: max_steps",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: [", "helper.yaml:1"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        (MINIMAL + "tools: [search, search]\n", "names the same tool twice"),
        (MINIMAL + "max_cost_usd: 0.1234567891\n", "more than nine decimals"),
        (MINIMAL + "max_cost_usd: -1\n", "max_cost_usd"),
        (MINIMAL + "max_cost_usd: .nan\n", "max_cost_usd"),
        (MINIMAL + "on_doubt: guess\n", "on_doubt"),
        (MINIMAL.replace("model: builtin-rules\n", ""), "model: Field required"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    assert said in refused(text).message


def test_money_is_exact() -> None:
    assert parse_definition(MINIMAL + "max_cost_usd: 0.1\n", "a.yaml").max_cost_nanos == 100_000_000
    assert parse_definition(MINIMAL + "max_cost_usd: 1e-9\n", "a.yaml").max_cost_nanos == 1


@given(st.integers(min_value=0, max_value=10**15))
def test_money_and_version_survive_the_canonical_form(nanos: int) -> None:
    usd = Decimal(nanos) / 10**9
    definition = AgentDefinition(
        name="a", display_name="A", description="A", instructions="A", model="m", max_cost_usd=usd
    )
    again = AgentDefinition.from_canonical(definition.canonical())
    assert definition.max_cost_nanos == nanos
    assert again.version == definition.version
    assert again.max_cost_nanos == nanos


def test_a_stored_definition_of_another_version_of_remit_is_refused() -> None:
    with pytest.raises(RemitError, match="is not understood by this version") as caught:
        AgentDefinition.from_canonical(b'{"name":"assistant","wings":2}')
    assert caught.value.reason == reasons.ERROR_REASON_CONFIGURATION_INVALID


def test_the_version_changes_with_any_field_and_with_nothing_else() -> None:
    first = parse_definition(MINIMAL, "a.yaml")
    reordered = "".join(reversed(MINIMAL.splitlines(keepends=True)))
    assert parse_definition(reordered, "b.yaml").version == first.version
    assert parse_definition(MINIMAL + "max_steps: 3\n", "a.yaml").version != first.version


FALLBACK = """\
fallback: {model: second, canned_answer: Ask a person.}
confidence: {min: 0.9}
"""


def test_a_definition_without_the_newer_fields_keeps_its_version() -> None:
    definition = parse_definition(MINIMAL, "a.yaml")
    assert not {"agents", "fallback", "confidence"} & set(json.loads(definition.canonical()))
    assert definition.version == (
        "606419dcfd13160f7e7be28b821956891adf11d561454aa31fd2b549e4f6942f"
    )


def test_fallback_and_confidence_survive_the_canonical_form() -> None:
    definition = parse_definition(MINIMAL + FALLBACK, "a.yaml")
    again = AgentDefinition.from_canonical(definition.canonical())
    assert again == definition
    assert again.rules.fallback is not None
    assert again.rules.fallback.min_confidence == 0.7
    assert again.rules.timeout_s == 30
    proto = again.to_proto()
    assert (proto.fallback_model, proto.min_confidence) == ("models/second", 0.9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fallback: {model: builtin-rules}\n", "fallback.model: is the agent's own model"),
        ("fallback: {}\n", "helper.yaml:6: fallback: needs a model, a canned_answer, or both"),
        ("fallback: {modle: x}\n", "fallback.modle: unknown field; did you mean model?"),
        ("confidence: {min: 2}\n", "helper.yaml:6: confidence.min"),
        ("confidence: {source: guess}\n", "helper.yaml:6: confidence.source"),
    ],
)
def test_what_is_wrong_in_fallback_and_confidence_is_said(text: str, said: str) -> None:
    assert said in refused(MINIMAL + text).message


def test_a_run_may_use_the_fallbacks_of_its_agent_and_pass_on_those_of_the_agents_below() -> None:
    below = MINIMAL.replace("helper", "below") + "fallback: {model: third}\n"
    above = parse_definition(MINIMAL + FALLBACK + "agents: [below]\n", "a.yaml")
    grant = AgentCatalog([above, parse_definition(below, "b.yaml")]).grant(above)
    assert grant.models == ("models/builtin-rules", "models/second")
    assert grant.delegable_models == ("models/builtin-rules", "models/third")


def test_an_operators_agent_replaces_a_shipped_one(agents_dir: Path) -> None:
    (agents_dir / "mine.yaml").write_text(MINIMAL.replace("helper", "assistant"))
    assert load_catalog(agents_dir).get("agents/assistant").display_name == "Helper"


def test_two_files_may_not_declare_the_same_agent(agents_dir: Path) -> None:
    (agents_dir / "a.yaml").write_text(MINIMAL)
    (agents_dir / "b.yml").write_text(MINIMAL)
    with pytest.raises(RemitError, match=r"b.yml: name: helper is declared in a.yaml too"):
        load_catalog(agents_dir)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RemitError, match="REMIT_AGENT_AGENTS_DIR"):
        load_catalog(tmp_path / "nowhere")


def test_a_file_that_is_no_text_is_named(agents_dir: Path) -> None:
    (agents_dir / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RemitError, match=r"a\.yaml: cannot be read"):
        load_catalog(agents_dir)


def test_an_unknown_agent_is_answered_with_the_nearest() -> None:
    catalog = AgentCatalog([parse_definition(MINIMAL, "a.yaml")])
    with pytest.raises(
        RemitError, match=r"agents/helpr does not exist; did you mean agents/helper"
    ) as caught:
        catalog.get("agents/helpr")
    assert caught.value.reason == reasons.ERROR_REASON_AGENT_NOT_FOUND


def test_the_example_in_the_docs_is_an_agent() -> None:
    page = Path("docs/AGENTS.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    assert parse_definition(example, "translator.yaml").max_cost_nanos == 250_000_000


def test_the_rules_in_the_docs_are_rules() -> None:
    page = Path("docs/AGENTS.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in page.split("```yaml\n")[1:]]
    (rules,) = [block for block in blocks if "fallback:" in block]
    without_model = MINIMAL.replace("model: builtin-rules\n", "")
    definition = parse_definition(without_model + rules, "helper.yaml")
    assert definition.model_names == ("models/gpt", "models/local")
    assert definition.confidence is not None
    assert definition.confidence.min == 0.8
