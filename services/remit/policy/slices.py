"""The policies that can matter for a question, and no others.

Cedar looks at every policy of a set for every question. A policy whose scope names other actions,
or one other resource, can never apply, so a question is put to a slice: those whose scope fits its
action and resource. The answer is the same, errors included, since a scope is looked at before a
condition.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import Final
from weakref import WeakValueDictionary

import cedarpy

from remit.policy.rule_sets import RuleSet, WrittenPolicy

_MOST_SLICES: Final = 1024
MOST_POLICIES: Final = 65_536
"""In all slices that are kept; a parsed policy takes about 2 KiB. Without this bound, a thousand
policies for every tool beside a thousand for one tool each would take gigabytes."""


class Slice:
    """Policies parsed as one set, in their order."""

    def __init__(self, policies: tuple[WrittenPolicy, ...]) -> None:
        self.policies = policies
        self.parsed = cedarpy.PolicySet.from_str(
            "\n".join(policy.text for policy in policies), release_gil=True
        )

    @cached_property
    def looked_at(self) -> frozenset[str]:
        """The facts of each call that one of its policies may look at."""
        return frozenset[str]().union(*(policy.looked_at for policy in self.policies))

    @cached_property
    def lifted(self) -> Slice:
        """The same without what is forbidden only until people approve it."""
        return Slice(tuple(p for p in self.policies if p.approval is None or p.effect != "forbid"))

    def identifier(self, position: str) -> str:
        """The `@id` behind the name that Cedar gives a policy in its errors, `policy3`."""
        number = position.removeprefix("policy")
        known = number.isdecimal() and int(number) < len(self.policies)
        return self.policies[int(number)].identifier if known else position


class Slices:
    """Slices of a rule set, each parsed when it is first needed and kept."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        # Resources that some policy names alone: all others share one slice for each action.
        self._named = {policy.resource for policy in rules.policies if policy.resource}
        self._by_question: OrderedDict[tuple[str, str], Slice] = OrderedDict()
        # Shared by questions that are kept, and gone with the last of them.
        self._by_policies: WeakValueDictionary[tuple[WrittenPolicy, ...], Slice] = (
            WeakValueDictionary()
        )

    @cached_property
    def guarding(self) -> Slice:
        """The policies that say what is screened; all are permits, so each that applies is told."""
        return Slice(tuple(p for p in self._rules.policies if p.guardrails is not None))

    def of(self, action: str, resource: str) -> Slice:
        """The slice for a question about `action` on `resource`."""
        key = (action, resource if resource in self._named else "")
        found = self._by_question.get(key)
        if found is None:
            found = self._shared(tuple(p for p in self._rules.policies if _may_apply(p, *key)))
            self._by_question[key] = found
            self._forget()
        else:
            self._by_question.move_to_end(key)
        return found

    @property
    def policy_count(self) -> int:
        """Policies in the slices that are kept, each as often as it was parsed."""
        return sum(len(each.policies) for each in set(self._by_question.values()))

    def _shared(self, policies: tuple[WrittenPolicy, ...]) -> Slice:
        known = self._by_policies.get(policies)
        if known is None:
            known = self._by_policies[policies] = Slice(policies)
        return known

    def _forget(self) -> None:
        """Let go what was not asked for longest, but never the newest."""
        kept = self._by_question
        while len(kept) > _MOST_SLICES or (len(kept) > 1 and self.policy_count > MOST_POLICIES):
            kept.popitem(last=False)


def _may_apply(policy: WrittenPolicy, action: str, resource: str) -> bool:
    if policy.resource and policy.resource != resource:
        return False
    # An action stands in the group of its noun (schema.py), which a policy may name.
    return policy.actions is None or not policy.actions.isdisjoint(
        {action, action.partition(".")[0]}
    )
