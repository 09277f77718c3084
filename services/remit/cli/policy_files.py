"""The policies of a folder, as they are sent."""

from __future__ import annotations

from pathlib import Path

from remit.api.policy.v1 import policy_set_pb2


def policy_files(folder: Path) -> list[policy_set_pb2.PolicyFile]:
    """The *.cedar files of a folder. Raises CONFIGURATION_INVALID if there are none to read."""
    from remit.policy.epochs import read_policies  # noqa: PLC0415 - slow
    from remit.policy.set_messages import file_messages  # noqa: PLC0415

    return file_messages(read_policies(folder).files)
