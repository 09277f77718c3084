"""The connection of a command to the edge of a mesh: where, with which key, and how it speaks.

Address and key come from the command line, else from the environment, else from the state
directory of a mesh on this machine. Every client command takes the same four options.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import click

from remit.api.errors.v1 import error_reason_pb2
from remit.cli.output import Output
from remit.client import Client, Patience
from remit.local.state import StateDirectory, default_state
from remit.rpc.errors import RemitError
from remit.rpc.ids import SystemIds

DEFAULT_ADDRESS: Final = "127.0.0.1:8080"
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})")
_LOOPBACK: Final = re.compile(r"127\.[0-9.]+|localhost|\[::1\]")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_PAGE: Final = 200
_UNANSWERED_S: Final = 1.0
"""A person is told soon that nothing answers."""

Result = TypeVar("Result")
Item = TypeVar("Item")


Edge: TypeAlias = Client
"""The edge of a mesh, called with one API key."""


@dataclasses.dataclass(frozen=True)
class Session:
    """What a client command works with."""

    address: str
    api_key: str
    state: Path
    output: Output

    def run(self, work: Callable[[Edge], Awaitable[Result]]) -> Result:
        """Runs `work` with a connection. Raises RemitError."""
        return asyncio.run(self._run(work))

    async def _run(self, work: Callable[[Edge], Awaitable[Result]]) -> Result:
        async with self.edge() as edge:
            return await work(edge)

    @contextlib.asynccontextmanager
    async def edge(self) -> AsyncIterator[Edge]:
        """A connection for the body; what cannot be reached is told with its address."""
        address = self.address or address_of(self.state)
        key = self.api_key or stored_key(self.state)
        client = Client(address, key, patience=Patience(unanswered_s=_UNANSWERED_S))
        self._warn_of_plain_text(address)
        try:
            async with client:
                yield client
        except RemitError as error:
            raise _explained(error, address) from error

    def _warn_of_plain_text(self, address: str) -> None:
        match = _ADDRESS.fullmatch(address)
        if match and not _LOOPBACK.fullmatch(match["host"]):
            self.output.warn(f"the API key goes to {address} without encryption")


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


PageT = TypeVar("PageT", bound=_Page)


@dataclasses.dataclass(frozen=True)
class Listing(Generic[Item]):
    """Items of a list, and whether there are more than were asked for."""

    items: list[Item]
    more: bool


async def collect(
    fetch: Callable[[int, str], Awaitable[PageT]],
    items_of: Callable[[PageT], Iterable[Item]],
    limit: int,
) -> Listing[Item]:
    """Pages through a list until `limit` items; `fetch` takes a page's size and its token."""
    items: list[Item] = []
    token = ""
    while True:
        page = await fetch(min(limit - len(items), _MAX_PAGE), token)
        items += items_of(page)
        token = page.next_page_token
        if not token or len(items) >= limit:
            return Listing(items[:limit], bool(token) or len(items) > limit)


def client_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of every client command; the function gets a `session`."""

    @functools.wraps(function)
    def with_session(
        *args: object,
        address: str,
        api_key: str,
        state: Path,
        as_json: bool,
        **kwargs: object,
    ) -> Any:  # noqa: ANN401 - a command's own result
        session = Session(address, api_key, state, Output(as_json=as_json))
        return function(*args, session=session, **kwargs)

    for option in reversed(_OPTIONS):
        with_session = option(with_session)
    return with_session


def new_request_id() -> str:
    """An id for one mutation."""
    return SystemIds().uuid7()


def address_of(state: Path) -> str:
    """The edge of the mesh of a state directory, else the default."""
    try:
        document = json.loads(StateDirectory(state).mesh_file.read_text(encoding="utf-8"))
        edge = str(document["edge"])
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_ADDRESS
    return edge if _ADDRESS.fullmatch(edge) else DEFAULT_ADDRESS


def stored_key(state: Path) -> str:
    """The key that `remit up` keeps in its state directory.

    Raises:
        RemitError: CREDENTIAL_MISSING if there is none; CONFIGURATION_INVALID if others can read
            it, for then it is no secret any more.

    """
    file = StateDirectory(state).api_key_file
    try:
        if stat.S_IMODE(file.stat().st_mode) & _OTHERS:
            raise _configuration(f"others can read the API key in {file}; run `chmod 600 {file}`")
        return file.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise RemitError(
            error_reason_pb2.ERROR_REASON_CREDENTIAL_MISSING,
            f"there is no API key: {file} does not exist; set REMIT_API_KEY, give --api-key, or"
            " start a mesh on this machine with `remit up`",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _configuration(f"the API key in {file} cannot be read: {error}") from error


def _explained(error: RemitError, address: str) -> RemitError:
    """A refused connection says nothing to a person; the address and the remedy do."""
    refused = error.reason == error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE and (
        "failed to connect" in error.message or "DNS resolution failed" in error.message
    )
    if not refused:
        return error
    return RemitError(
        error.reason,
        f"nothing answers at {address}; `remit up` starts a mesh on this machine, --address names"
        " another",
    )


def _configuration(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message)


def _checked_address(_context: click.Context, _option: click.Parameter, value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if value and not (match and 1 <= int(match["port"]) <= 65_535):
        message = f"{value!r} is no HOST:PORT, such as {DEFAULT_ADDRESS}"
        raise click.BadParameter(message)
    return value


_OPTIONS: Final = (
    click.option(
        "--address",
        metavar="HOST:PORT",
        envvar="REMIT_ADDRESS",
        default="",
        callback=_checked_address,
        help="Edge of the mesh (REMIT_ADDRESS).  [default: that of the mesh of --state, else"
        f" {DEFAULT_ADDRESS}]",
    ),
    click.option(
        "--api-key",
        metavar="KEY",
        envvar="REMIT_API_KEY",
        default="",
        help="API key; better in REMIT_API_KEY, since others can see command lines.  [default: the"
        " file api-key in --state]",
    ),
    click.option(
        "--state",
        type=click.Path(path_type=Path),
        default=default_state,
        help="Folder of a mesh on this machine (REMIT_STATE).  [default: ~/.local/state/remit,"
        " /var/lib/remit as root]",
    ),
    click.option("--json", "as_json", is_flag=True, help="JSON on standard output, for machines."),
)
