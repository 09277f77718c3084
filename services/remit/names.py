"""Resource names: the one place that knows how they are built and read.

Names follow AIP-122: collections and identifiers in turn. An account of the ledger is named by its
whole path, so that its ancestors are its prefixes.
"""

from __future__ import annotations

import re
from typing import Final

_ID: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,98}[A-Za-z0-9])?"
_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PATTERNS: Final = {
    "org": re.compile(rf"orgs/({_ID})"),
    "team": re.compile(rf"orgs/({_ID})/teams/({_ID})"),
    "user": re.compile(rf"orgs/({_ID})/users/({_ID})"),
    "apiKey": re.compile(rf"orgs/({_ID})/apiKeys/({_ID})"),
    "grant": re.compile(rf"orgs/({_ID})/grants/({_UUID})"),
    "agent": re.compile(rf"agents/({_ID})"),
    "run": re.compile(rf"runs/({_UUID})"),
    "conversation": re.compile(rf"conversations/({_UUID})"),
    "tool": re.compile(rf"tools/({_ID})"),
    "model": re.compile(rf"models/({_ID})"),
    "claim": re.compile(rf"claims/({_UUID})"),
    "approval": re.compile(rf"approvals/({_UUID})"),
    "reservation": re.compile(rf"reservations/({_UUID})-([0-9]+)"),
}

_RUNS_UNDER_AGENTS: Final = re.compile(rf"agents/{_ID}/runs/{_UUID}(?:/agents/{_ID}/runs/{_UUID})*")


def is_name(kind: str, name: str) -> bool:
    """Whether `name` is a full name of that kind, such as ("run", "runs/0198...")."""
    return _PATTERNS[kind].fullmatch(name) is not None


def parse(kind: str, name: str) -> tuple[str, ...]:
    """The identifiers inside a full name, outermost first. Raises ValueError if it is none."""
    match = _PATTERNS[kind].fullmatch(name)
    if match is None:
        message = f"{name!r} is not the name of a {kind}"
        raise ValueError(message)
    return match.groups()


def org_name(org: str) -> str:
    """`orgs/{org}`."""
    return _checked("org", f"orgs/{org}")


def team_name(org: str, team: str) -> str:
    """`orgs/{org}/teams/{team}`."""
    return _checked("team", f"orgs/{org}/teams/{team}")


def user_name(org: str, user: str) -> str:
    """`orgs/{org}/users/{user}`."""
    return _checked("user", f"orgs/{org}/users/{user}")


def api_key_name(org: str, key: str) -> str:
    """`orgs/{org}/apiKeys/{key}`."""
    return _checked("apiKey", f"orgs/{org}/apiKeys/{key}")


def grant_name(org: str, grant: str) -> str:
    """`{org}/grants/{grant}` from the org's full name; {grant} is a UUID in canonical text form."""
    return _checked("grant", f"{_checked('org', org)}/grants/{grant}")


def agent_name(agent: str) -> str:
    """`agents/{agent}`."""
    return _checked("agent", f"agents/{agent}")


def run_name(run: str) -> str:
    """`runs/{run}`; {run} is a UUID in canonical text form."""
    return _checked("run", f"runs/{run}")


def conversation_name(conversation: str) -> str:
    """`conversations/{conversation}`; {conversation} is a UUID in canonical text form."""
    return _checked("conversation", f"conversations/{conversation}")


def tool_name(tool: str) -> str:
    """`tools/{tool}`."""
    return _checked("tool", f"tools/{tool}")


def model_name(model: str) -> str:
    """`models/{model}`."""
    return _checked("model", f"models/{model}")


def claim_name(claim: str) -> str:
    """`claims/{claim}`; {claim} is a UUID in canonical text form."""
    return _checked("claim", f"claims/{claim}")


def approval_name(approval: str) -> str:
    """`approvals/{approval}`; {approval} is a UUID in canonical text form."""
    return _checked("approval", f"approvals/{approval}")


def reservation_name(claim: str, attempt: int) -> str:
    """`reservations/{claim}-{attempt}` from the claim's full name."""
    return _checked("reservation", f"reservations/{parse('claim', claim)[0]}-{attempt}")


def org_of(name: str) -> str:
    """The org `orgs/{org}` that a name or account path begins with. Raises ValueError if none."""
    parts = name.split("/")
    return _checked("org", "/".join(parts[:2]))


def account_path(user: str, *, team: str = "", agent: str = "", run: str = "") -> tuple[str, ...]:
    """Accounts that an effect's money is held on, the org first and the leaf last.

    Takes full names; `team`, `agent` and `run` may be empty. Each account's name is its whole path:
    `orgs/acme`, `orgs/acme/teams/core`, `orgs/acme/teams/core/users/alice`, ...
    Raises ValueError for a malformed name or a team of another org.
    """
    org, user_id = parse("user", user)
    accounts = [org_name(org)]
    if team:
        team_org, team_id = parse("team", team)
        if team_org != org:
            message = f"{team} is not a team of {org_name(org)}"
            raise ValueError(message)
        accounts.append(f"{accounts[-1]}/teams/{team_id}")
    accounts.append(f"{accounts[-1]}/users/{user_id}")
    for kind, name in (("agent", agent), ("run", run)):
        if name:
            accounts.append(f"{accounts[-1]}/{kind}s/{parse(kind, name)[0]}")
    return tuple(accounts)


def nested_account(parent: str, *, agent: str, run: str) -> str:
    """The account of a sub-run: below that of the run whose step it is, so that it spends both.

    `parent` is the account of a run; takes full names. Raises ValueError.
    """
    if not run_accounts(parent):
        message = f"{parent!r} is not the account of a run"
        raise ValueError(message)
    return f"{parent}/{_checked('agent', agent)}/{_checked('run', run)}"


def run_accounts(account: str) -> tuple[str, ...]:
    """The accounts of runs on a leaf's path, the outermost first."""
    return tuple(found for found in ancestors(account) if found.split("/")[-2] == "runs")


def is_account_of(
    account: str, user: str, *, team: str = "", agent: str = "", run: str = ""
) -> bool:
    """Whether an effect of the user's, the agent's and the run's may be held on this account.

    That of a sub-run lies below those of the runs above it, each under its agent.
    """
    if account == account_path(user, team=team, agent=agent, run=run)[-1]:
        return True
    below = account.removeprefix(f"{account_path(user, team=team)[-1]}/")
    is_nested = below != account and _RUNS_UNDER_AGENTS.fullmatch(below) is not None
    return is_nested and bool(agent and run) and account.endswith(f"/{agent}/{run}")


def ancestors(account: str) -> tuple[str, ...]:
    """All accounts of a leaf's path, the org first and the leaf itself last."""
    parts = account.split("/")
    return tuple("/".join(parts[:end]) for end in range(2, len(parts) + 1, 2))


def _checked(kind: str, name: str) -> str:
    parse(kind, name)
    return name
