"""The databases of a mesh and their roles, made by an administrator of a PostgreSQL server.

Each database `remit_<name>` belongs to the role `remit_<name>_owner`, which migrates it; the
service `remit_<name>` may connect and gets from the migrations what it needs. Two further roles can
do one thing each: `remit_audit_keys_eraser` deletes subjects' keys, `remit_audit_archiver` drops
archived months of the log. Nothing here needs a superuser: a role with CREATEROLE and CREATEDB, as
managed PostgreSQL gives it, will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import asyncpg

from remit.api.errors.v1 import error_reason_pb2
from remit.postgres import DATABASES, translated, usable
from remit.rpc.errors import RemitError

KEYS_ERASER: Final = "audit_keys_eraser"
ARCHIVER: Final = "audit_archiver"
FURTHER: Final = {KEYS_ERASER: "audit_keys", ARCHIVER: "audit"}
"""Roles beside the owner and the service, by their short names, and the database each may enter."""
_CONNECT_TIMEOUT_S: Final = 10.0
_PASSWORD: Final = re.compile(r"[0-9A-Za-z_-]{16,200}")
_MAKING_LOCK: Final = 0x6D616B65  # "make"


def service_role(database: str) -> str:
    """The role of the service that uses a database; also one of `FURTHER`, by its short name."""
    return f"remit_{database}"


def owner_of(database: str) -> str:
    """The role that owns and migrates a database."""
    return f"remit_{database}_owner"


def roles() -> Iterator[str]:
    """Every role, the owner before the service."""
    for name in DATABASES:
        yield owner_of(name)
        yield service_role(name)
    for name in FURTHER:
        yield service_role(name)


async def make_databases(admin_dsn: str, passwords: Mapping[str, str]) -> list[str]:
    """Makes every role and database that is missing and sets every role's password.

    Returns the names of the databases that are new. Safe to repeat, and from several processes.

    Raises:
        RemitError: DEPENDENCY_UNAVAILABLE without the server; CONFIGURATION_INVALID for a password
            that could not stand in SQL, or when the administrator may not do this.

    """
    with translated(), usable(admin_dsn):
        admin = await asyncpg.connect(admin_dsn, timeout=_CONNECT_TIMEOUT_S)
    try:
        await admin.execute("SELECT pg_advisory_lock($1)", _MAKING_LOCK)
        # Who makes a role may act for it from now on, so that it can be given its database. A
        # superuser may so anyway.
        await admin.execute("SET createrole_self_grant = 'set, inherit'")
        await make_roles(admin, passwords)
        new = await missing(admin)
        for name in new:
            await make_database(admin, name)
        await limit_access(admin)
    except asyncpg.InsufficientPrivilegeError as error:
        raise _invalid(f"the administrator needs CREATEROLE and CREATEDB: {error}") from error
    else:
        return new
    finally:
        await admin.close()


async def make_roles(admin: asyncpg.Connection[Any], passwords: Mapping[str, str]) -> None:
    """Makes roles that are missing and gives every role its password."""
    known = {row["rolname"] for row in await admin.fetch("SELECT rolname FROM pg_roles")}
    async with admin.transaction():
        for role, password in passwords.items():
            if _PASSWORD.fullmatch(password) is None:
                raise _invalid(f"the password of {role} must be 16 to 200 of 0-9 A-Z a-z _ -")
            verb = "ALTER" if role in known else "CREATE"
            await admin.execute(f"{verb} ROLE {role} LOGIN PASSWORD '{password}'")


async def missing(admin: asyncpg.Connection[Any]) -> list[str]:
    """The databases that are not there, by their short names."""
    known = {row["datname"] for row in await admin.fetch("SELECT datname FROM pg_database")}
    return [name for name in DATABASES if f"remit_{name}" not in known]


async def make_database(admin: asyncpg.Connection[Any], name: str) -> None:
    """Makes one database for its owner."""
    await admin.execute(f"CREATE DATABASE remit_{name} OWNER {owner_of(name)}")


async def limit_access(admin: asyncpg.Connection[Any]) -> None:
    """At every start: a crash between making a database and this must not leave it open."""
    async with admin.transaction():
        for name in DATABASES:
            await admin.execute(f"REVOKE ALL ON DATABASE remit_{name} FROM PUBLIC")
            await admin.execute(f"GRANT CONNECT ON DATABASE remit_{name} TO {service_role(name)}")
        for role, name in FURTHER.items():
            await admin.execute(f"GRANT CONNECT ON DATABASE remit_{name} TO {service_role(role)}")


def _invalid(message: str) -> RemitError:
    return RemitError(error_reason_pb2.ERROR_REASON_CONFIGURATION_INVALID, message)
