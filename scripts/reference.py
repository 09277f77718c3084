"""Renders the pages that follow from the contracts: docs/ERRORS.md and docs/CONTRACTS.md.

What an RPC promises and what an error means is stated once, in the contracts; a page written by
hand would be a second statement, and wrong before long. The pages are golden files: a test compares
them and `make golden` rewrites them.

Comments are not part of a Python stub, so the contracts are compiled once more, comments included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2
from google.rpc import code_pb2

from remit.api.errors.v1.error_reason_pb2 import ErrorReason
from remit.api.options.v1 import options_pb2
from remit.rpc.errors import QUOTING
from scripts.protos import contracts, run_protoc

ERRORS_HEAD = """# Errors

<!-- Rendered from protos/ by `make golden`; not edited. -->

Every error of Remit carries a canonical gRPC code and a `google.rpc.ErrorInfo` with domain
`remit.dev`, whose reason is one of these. The message names what is wrong; what to do next is the
same for every error of a reason. Where it is apt the error also carries `BadRequest` (every field
at fault), `QuotaFailure`, `PreconditionFailure` or `RetryInfo`.

Some messages quote what a provider, a tool or a model said, and so perhaps a user: those of

{quoting}

Proxies write the header `grpc-message` into traces, so in gRPC such a message stands in
`ErrorInfo.metadata["message"]` instead, and the status says so; REST's body has it as `message`."""
CONTRACTS_HEAD = """# Contracts

<!-- Rendered from protos/ by `make golden`; not edited. -->

What every RPC promises and needs, as its option `(remit.api.options.v1.method)` states it. Gateway,
servers, clients, policy and audit take these facts from the same place."""
ENUM_VALUE_OF_FILE = (5, 2)  # FileDescriptorProto.enum_type, EnumDescriptorProto.value
METHOD_OF_FILE = (6, 2)  # FileDescriptorProto.service, ServiceDescriptorProto.method


@dataclass(frozen=True)
class Reason:
    """One ErrorReason with its comment."""

    name: str
    comment: str
    contract: options_pb2.ReasonContract


@dataclass(frozen=True)
class Rpc:
    """One RPC with its comment; `service` is the short name."""

    area: str
    service: str
    name: str
    comment: str
    contract: options_pb2.MethodContract


def errors_page() -> str:
    """Return the text of docs/ERRORS.md."""
    sections = [reason_section(reason) for reason in reasons()]
    quoting = "\n".join(f"- `{ErrorReason.Name(reason)}`" for reason in sorted(QUOTING))
    return "\n\n".join([ERRORS_HEAD.format(quoting=quoting), *sections]) + "\n"


def reason_section(reason: Reason) -> str:
    """Return one reason's section."""
    code = code_pb2.Code.Name(reason.contract.code)
    retry = "yes, after the time in `RetryInfo`" if reason.contract.retryable else "no"
    return "\n".join(
        [
            f"## {reason.name}",
            "",
            reason.comment,
            "",
            f"- Code: `{code}`",
            f"- Example: `{reason.contract.example}`",
            f"- What to do: {reason.contract.next_step}",
            f"- May the same call succeed later: {retry}",
        ]
    )


def contracts_page() -> str:
    """Return the text of docs/CONTRACTS.md."""
    found = list(rpcs())
    areas = sorted({rpc.area for rpc in found})
    sections = [area_section(area, [rpc for rpc in found if rpc.area == area]) for area in areas]
    return "\n\n".join([CONTRACTS_HEAD, *sections]) + "\n"


def area_section(area: str, found: Sequence[Rpc]) -> str:
    """Return the tables of one area: what each RPC does, then its limits."""
    meaning = table(
        ("RPC", "What it does", "Callers", "Presents", "Permission", "Recorded"),
        [meaning_row(rpc) for rpc in found],
    )
    limits = table(
        (
            *("RPC", "Phase", "Repeat", "Deadline", "One try", "Request", "Response", "In flight"),
            "Rate limit",
        ),
        [limits_row(rpc) for rpc in found],
    )
    return f"## {area}\n\n{meaning}\n\n{limits}"


def meaning_row(rpc: Rpc) -> tuple[str, ...]:
    """Return what the RPC does and who may call it."""
    stated = rpc.contract
    callers = [word(options_pb2.Caller.Name(caller), "CALLER_") for caller in stated.callers]
    return (
        f"`{rpc.service}.{rpc.name}`",
        rpc.comment,
        ", ".join(callers),
        word(options_pb2.Auth.Name(stated.auth), "AUTH_"),
        f"`{stated.permission}`" if stated.permission else "-",
        word(options_pb2.AuditClass.Name(stated.audit), "AUDIT_CLASS_"),
    )


def limits_row(rpc: Rpc) -> tuple[str, ...]:
    """Return the bounds of the RPC; a stream's deadline is its longest life."""
    stated = rpc.contract
    repeat = word(options_pb2.Idempotency.Name(stated.idempotency), "IDEMPOTENCY_")
    limit = stated.stream.max_life if stated.HasField("stream") else stated.deadline
    return (
        f"`{rpc.service}.{rpc.name}`",
        word(options_pb2.Phase.Name(stated.phase), "PHASE_"),
        f"{repeat} by `{stated.key}`" if stated.key else repeat,
        seconds(limit),
        seconds(stated.attempt_timeout) if stated.HasField("attempt_timeout") else "-",
        size(stated.max_request_bytes),
        size(stated.max_response_bytes),
        str(stated.max_in_flight),
        word(options_pb2.RateLimit.Name(stated.rate_limit), "RATE_LIMIT_")
        if stated.rate_limit
        else "-",
    )


def reasons() -> Iterator[Reason]:
    """Yield every ErrorReason that can be sent, in the order of the contract."""
    for file in compiled():
        comments = comments_of(file)
        for enum_index, enum in enumerate(file.enum_type):
            if enum.name != "ErrorReason":
                continue
            for index, value in enumerate(enum.value):
                path = (ENUM_VALUE_OF_FILE[0], enum_index, ENUM_VALUE_OF_FILE[1], index)
                if value.options.HasExtension(options_pb2.reason):
                    contract = value.options.Extensions[options_pb2.reason]
                    yield Reason(value.name, comments[path], contract)


def rpcs() -> Iterator[Rpc]:
    """Yield every RPC, in the order of the contracts."""
    for file in compiled():
        comments = comments_of(file)
        area = file.package.split(".")[2]
        for service_index, service in enumerate(file.service):
            for index, method in enumerate(service.method):
                path = (METHOD_OF_FILE[0], service_index, METHOD_OF_FILE[1], index)
                contract = method.options.Extensions[options_pb2.method]
                yield Rpc(area, service.name, method.name, comments[path], contract)


def compiled() -> Sequence[descriptor_pb2.FileDescriptorProto]:
    """Return the contracts as descriptors with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "contracts.binpb"
        outputs = ["--include_source_info", f"--descriptor_set_out={target}"]
        run_protoc(outputs, [str(path) for path in contracts()])
        return descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file


def comments_of(file: descriptor_pb2.FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """Return the leading comment of each element, on one line, by the element's path."""
    return {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in file.source_code_info.location
        if location.leading_comments
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; a bar within a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def word(name: str, prefix: str) -> str:
    """Return an enum value as a word."""
    return name.removeprefix(prefix).lower()


def seconds(duration: duration_pb2.Duration) -> str:
    """Return a duration in seconds, without needless digits."""
    return f"{duration.seconds + duration.nanos / 1e9:g} s"


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that divides it."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % factor == 0:
            return f"{count // factor} {unit}"
    return f"{count} B"
