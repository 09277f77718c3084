"""The schema: every permission of the contracts is an action, and nothing else has to be kept."""

from __future__ import annotations

import cedarpy
import pytest

from remit.policy.entities import Principal
from remit.policy.epochs import read_policies
from remit.policy.rules import Question, rule_book
from remit.policy.schema import RUN_AGENT, SHIPPED_POLICIES, _declarations, actions, schema_text
from remit.rpc.contracts import all_contracts

ADMIN = Principal("orgs/a/users/x", "orgs/a", "", ("admin",))
BOOK = rule_book(read_policies(SHIPPED_POLICIES), 1)


@pytest.mark.parametrize("path", [path for path, c in all_contracts().items() if c.permission])
def test_the_permission_of_every_rpc_is_an_action_that_an_admin_may_do(path: str) -> None:
    permission = all_contracts()[path].permission
    assert permission in actions()
    assert BOOK.decide(Question(ADMIN, permission, "orgs/a")).allow


def test_a_permission_that_no_one_wrote_down_becomes_an_action_of_its_group() -> None:
    declared = _declarations(["runs.fly", "new.thing"])
    cedarpy.Schema.from_str(schema_text().partition('action "agents"')[0] + declared)
    assert 'action "runs.fly" in ["runs"]' in declared
    assert 'action "new.thing" in ["new"]' in declared


def test_starting_a_run_under_an_agent_is_an_action_though_no_rpc_names_it() -> None:
    assert RUN_AGENT in actions()
    assert BOOK.decide(Question(ADMIN, RUN_AGENT, "agents/assistant")).allow
