"""Versions of policies on the wire, and what two sets do not have alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final

from google.protobuf import timestamp_pb2

from remit.api.policy.v1 import policy_set_pb2
from remit.policy.rule_sets import RuleSet, WrittenPolicy
from remit.policy.set_store import Version

_Difference = policy_set_pb2.PolicyDifference
_ORIGINS: Final = {
    "FILES": policy_set_pb2.PolicySet.ORIGIN_FILES,
    "PUSH": policy_set_pb2.PolicySet.ORIGIN_PUSH,
    "ROLLBACK": policy_set_pb2.PolicySet.ORIGIN_ROLLBACK,
    "UPGRADE": policy_set_pb2.PolicySet.ORIGIN_UPGRADE,
}


def version_message(facts: Version) -> policy_set_pb2.PolicySet:
    """A version on the wire."""
    return policy_set_pb2.PolicySet(
        version=facts.version,
        digest=facts.digest,
        origin=_ORIGINS[facts.origin],
        author=facts.author,
        message=facts.message,
        create_time=timestamp_of(facts.create_time),
        source_version=facts.source_version,
        policy_count=facts.policy_count,
    )


def file_messages(files: Mapping[str, str]) -> list[policy_set_pb2.PolicyFile]:
    """Files on the wire, by name."""
    return [policy_set_pb2.PolicyFile(name=name, text=text) for name, text in sorted(files.items())]


def files_of(messages: Iterable[policy_set_pb2.PolicyFile]) -> dict[str, str]:
    """Files by name. Raises ValueError if a name comes twice."""
    files: dict[str, str] = {}
    for message in messages:
        if message.name in files:
            fault = f"{message.name!r} is there twice"
            raise ValueError(fault)
        files[message.name] = message.text
    return files


def differences(before: RuleSet, after: RuleSet) -> Iterator[_Difference]:
    """What became of each policy, by `@id`; those that are alike are left out."""
    old = {policy.identifier: policy for policy in before.policies}
    new = {policy.identifier: policy for policy in after.policies}
    for identifier in sorted(old.keys() | new.keys()):
        found = _difference(old.get(identifier), new.get(identifier))
        if found is not None:
            yield found


def _difference(old: WrittenPolicy | None, new: WrittenPolicy | None) -> _Difference | None:
    shown = new or old
    if shown is None or (old and new and old.text == new.text):
        return None
    effects = dict.fromkeys(policy.effect for policy in (old, new) if policy)
    return _Difference(
        policy_id=shown.identifier,
        kind=(
            _Difference.KIND_ADDED
            if old is None
            else _Difference.KIND_REMOVED
            if new is None
            else _Difference.KIND_CHANGED
        ),
        file=shown.file,
        line=shown.line,
        effect=" → ".join(effects),
        before=old.text if old else "",
        after=new.text if new else "",
    )


def timestamp_of(time: datetime) -> timestamp_pb2.Timestamp:
    """A time on the wire."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(time)
    return stamp
