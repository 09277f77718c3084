"""Resource names are built and read by one set of rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remit import names

ids = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,20}[A-Za-z0-9])?", fullmatch=True)
uuids = st.uuids().map(str)


@given(ids, ids)
def test_what_is_built_is_read(org: str, user: str) -> None:
    name = names.user_name(org, user)
    assert names.parse("user", name) == (org, user)
    assert names.org_of(name) == f"orgs/{org}"


@given(st.text(max_size=30))
def test_what_is_no_identifier_builds_no_name(text: str) -> None:
    if names.is_name("org", f"orgs/{text}"):
        assert "/" not in text
        assert text.isascii()
    else:
        with pytest.raises(ValueError, match="not the name of a"):
            names.org_name(text)


@given(ids, ids, ids, ids, uuids)
def test_an_account_names_its_ancestors(
    org: str, team: str, user: str, agent: str, run: str
) -> None:
    path = names.account_path(
        names.user_name(org, user),
        team=names.team_name(org, team),
        agent=names.agent_name(agent),
        run=names.run_name(run),
    )
    assert len(path) == 5
    assert names.ancestors(path[-1]) == path
    assert path[0] == f"orgs/{org}"


@given(ids, ids, st.lists(st.tuples(ids, uuids), min_size=1, max_size=4))
def test_the_account_of_a_sub_run_lies_below_those_above_it(
    org: str, user: str, chain: list[tuple[str, str]]
) -> None:
    subject = names.user_name(org, user)
    steps = [(names.agent_name(agent), names.run_name(run)) for agent, run in chain]
    account = names.account_path(subject, agent=steps[0][0], run=steps[0][1])[-1]
    for agent, run in steps[1:]:
        account = names.nested_account(account, agent=agent, run=run)
    agent, run = steps[-1]
    assert names.is_account_of(account, subject, agent=agent, run=run)
    assert len(names.run_accounts(account)) == len(chain)
    assert names.run_accounts(account)[-1] == account
    other = names.run_name("00000000-0000-0000-0000-00000000ffff")
    assert not names.is_account_of(account, subject, agent=agent, run=other)
    assert not names.is_account_of(f"{account}/x/y", subject, agent=agent, run=run)
    assert not names.is_account_of(account, f"{subject}x", agent=agent, run=run)
    assert not names.is_account_of(account, subject)


def test_only_a_run_has_sub_runs() -> None:
    with pytest.raises(ValueError, match="not the account of a run"):
        names.nested_account("orgs/acme/users/alice", agent="agents/a", run="runs/x")


def test_a_team_of_another_org_pays_for_nobody() -> None:
    with pytest.raises(ValueError, match="not a team of"):
        names.account_path("orgs/a/users/u", team="orgs/b/teams/t")


@pytest.mark.parametrize(
    "name", ["", "orgs/", "orgs/a/", "orgs//users/b", "orgs/a/users/../x", "x"]
)
def test_what_is_no_user_is_refused(name: str) -> None:
    assert not names.is_name("user", name)


@given(uuids, st.integers(1, 10**6))
def test_a_reservation_is_named_by_claim_and_attempt(claim: str, attempt: int) -> None:
    name = names.reservation_name(names.claim_name(claim), attempt)
    assert names.parse("reservation", name) == (claim, str(attempt))
