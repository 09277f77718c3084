"""What the policies in force want of guardrails for a remit that is about to be issued.

Policies only add: every one that applies counts, and of all of them the strictest. One whose
condition cannot be evaluated counts as one that applies. To issue no remit instead would shut out
whoever could mend it.
"""

from __future__ import annotations

from collections.abc import Iterator

from remit.guardrails import Wanted
from remit.policy.entities import Principal, reference_to
from remit.policy.metrics import note_undecided
from remit.policy.rules import Decision, Question, RuleBook
from remit.policy.runs import Registration
from remit.policy.schema import APPLY_GUARDRAILS


def wanted_for_client(book: RuleBook, principal: Principal) -> Wanted:
    """What is wanted of a client's own calls."""
    if not book.guarding:
        return Wanted()
    return _wanted(book, Question(principal, APPLY_GUARDRAILS, principal.org))


def wanted_for_run(book: RuleBook, run: Registration) -> Wanted:
    """What is wanted of a run: of a sub-run also what is wanted of each run above it.

    So a run that is renewed without its parent has no less than it.
    """
    if not book.guarding:
        return Wanted()
    return Wanted.of(_wanted(book, question) for question in _questions(run))


def _questions(run: Registration) -> Iterator[Question]:
    for agent in run.line:
        context = {"agent": reference_to(agent), "run": reference_to(run.run)}
        yield Question(run.principal, APPLY_GUARDRAILS, agent, context=context)


def _wanted(book: RuleBook, question: Question) -> Wanted:
    decision = book.guardrails(question)
    note_undecided(decision, question.action, question.resource, errors=decision.errors)
    return wanted_by(book, decision)


def wanted_by(book: RuleBook, decision: Decision) -> Wanted:
    """What the policies of an answer want together."""
    applying = {*decision.policy_ids, *decision.failed_policies}
    return Wanted.of(
        policy.guardrails
        for policy in book.guarding
        if policy.guardrails is not None and policy.identifier in applying
    )
