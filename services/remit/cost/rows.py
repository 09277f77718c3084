"""How reservations, transfers and balances stand in their tables.

A batch is written with one statement, its rows as one array a column (`unnest`): the fastest way in
by measurement, for a round trip costs more than a row. The order of columns is stated once, here.

A connection plans a statement once, perhaps while the tables are empty, when reading them whole is
the cheapest; as they grow that plan would be ruinous. So each statement probes an index for each
key (a lateral select that `OFFSET 0` keeps apart), and batches run under BY_INDEX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Generic

from remit.columns import Column, Row, names_of, unnest
from remit.cost.accounts import BalanceKey, org_of, owners_of
from remit.cost.alerts import Alert
from remit.cost.books import Balance, Transfer
from remit.cost.reservations import Price, Reservation, ReservationKey, State, Usage
from remit.cost.terms import Enforcement, Terms

Record = Mapping[str, Any]

BY_INDEX: Final = "SET LOCAL enable_seqscan = off; SET LOCAL plan_cache_mode = force_generic_plan"
"""Plans a transaction's statements once a connection, and never to read whole tables."""


@dataclass(frozen=True, slots=True, eq=False)
class Write(Generic[Row]):
    """What is written into one table: the command around its rows, which are `n`.

    In `after`, `{first}` stands for the argument with the values of the first column.
    """

    columns: Sequence[Column[Row]]
    before: str
    after: str = ""

    def sql(self, first: int = 1) -> str:
        """The command; its arguments, an array a column, count from `first`."""
        values, after = unnest(self.columns, first), self.after.replace("{first}", f"${first}")
        return f"{self.before} {values} AS n ({names_of(self.columns)}){after}"


def _insert(table: str, columns: Sequence[Column[Row]], after: str = "") -> Write[Row]:
    before = f"INSERT INTO {table} ({names_of(columns)}) SELECT * FROM"
    return Write(columns, before, after)


@lru_cache
def writes_statement(writes: tuple[Write[Any], ...]) -> str:
    """All the writes in one statement; it answers how many rows each of them wrote.

    None of them sees what another writes, so no two may write the same row. What a foreign key
    demands may be in any of them: it is looked for at the end of the statement.
    """
    parts, first = [], 1
    for number, write in enumerate(writes):
        parts.append(f"w{number} AS ({write.sql(first)} RETURNING 1)")
        first += len(write.columns)
    counts = (f"(SELECT count(*) FROM w{number})" for number in range(len(writes)))  # noqa: S608 - constants of this module
    return f"WITH {', '.join(parts)} SELECT {', '.join(counts)}"


# -------------------------------------------------------------------------------- reservations

_KEY_COLUMNS: Final[tuple[Column[Reservation], ...]] = (
    Column("claim", "text", lambda row: row.key.claim),
    Column("attempt", "integer", lambda row: row.key.attempt),
)
_PINNED_COLUMNS: Final[tuple[Column[Reservation], ...]] = (
    Column("service", "text", lambda row: row.service),
    Column("day", "date", lambda row: row.day),
    Column("create_time", "timestamptz", lambda row: row.create_time),
    Column("account", "text", lambda row: row.account or None),
    Column("org", "text", lambda row: org_of(row.account) if row.account else None),
    Column("team", "text", lambda row: _owner(row, "team")),
    Column("user_name", "text", lambda row: _owner(row, "user")),
    Column("agent", "text", lambda row: _owner(row, "agent")),
    Column("run", "text", lambda row: _owner(row, "run")),
    Column("item", "text", lambda row: row.item or None),
    Column("price_version", "text", lambda row: row.price.version or None),
    Column("price_source", "text", lambda row: row.price.source or None),
    Column("own_limit_nanos", "bigint", lambda row: row.own_limit_nanos),
    Column("outer_limits_nanos", "jsonb", lambda row: _json_or_none(row.outer_limits_nanos)),
    Column("body_digest", "bytea", lambda row: row.body_digest or None),
)
_MUTABLE_COLUMNS: Final[tuple[Column[Reservation], ...]] = (
    Column("state", "smallint", lambda row: int(row.state)),
    Column("close_time", "timestamptz", lambda row: row.close_time),
    Column("bound_input_tokens", "bigint", lambda row: row.bound.input_tokens),
    Column("bound_cached_input_tokens", "bigint", lambda row: row.bound.cached_input_tokens),
    Column("bound_output_tokens", "bigint", lambda row: row.bound.output_tokens),
    Column("bound_calls", "bigint", lambda row: row.bound.calls),
    Column("hold_nanos", "bigint", lambda row: row.hold_nanos),
    Column("used_input_tokens", "bigint", lambda row: row.used and row.used.input_tokens),
    Column(
        "used_cached_input_tokens", "bigint", lambda row: row.used and row.used.cached_input_tokens
    ),
    Column("used_output_tokens", "bigint", lambda row: row.used and row.used.output_tokens),
    Column("used_calls", "bigint", lambda row: row.used and row.used.calls),
    Column("used_estimated", "boolean", lambda row: row.used and row.used.estimated),
    Column("posted_nanos", "bigint", lambda row: row.posted_nanos),
    Column("overrun_nanos", "bigint", lambda row: row.overrun_nanos),
    Column("transfers", "smallint", lambda row: row.transfers),
)
RESERVATION_COLUMNS: Final = _KEY_COLUMNS + _PINNED_COLUMNS + _MUTABLE_COLUMNS
CHANGE_COLUMNS: Final = _KEY_COLUMNS + _MUTABLE_COLUMNS

NEW_RESERVATIONS: Final = _insert("reservations", RESERVATION_COLUMNS)

# Only a hold may change; the state is a guard beside the locks.
CHANGED_RESERVATIONS: Final = Write(
    CHANGE_COLUMNS,
    "UPDATE reservations r SET "  # noqa: S608 - constants of this module
    + ", ".join(f"{column.name} = n.{column.name}" for column in _MUTABLE_COLUMNS)
    + " FROM",
    # That the claim is one of the rows' is said twice: joined in whatever way, an index finds them.
    f" WHERE r.claim = n.claim AND r.attempt = n.attempt AND r.state = {int(State.HELD)}"
    " AND r.claim = ANY ({first}::text[])",
)

# The reservations that exist of the names $1, $2, each beside its org's ledger, and the ledgers of
# the orgs $3. All these ledgers are locked, in order. The names must have been locked before: this
# statement sees what was committed when it began, and only a ledger's time as it is once locked.
SELECT_RESERVATIONS_LOCK_LEDGERS: Final = (
    "WITH known AS MATERIALIZED (SELECT r.*, p.input_nanos_per_million,"
    " p.cached_input_nanos_per_million, p.output_nanos_per_million, p.call_nanos"
    " FROM unnest($1::text[], $2::integer[]) AS k (claim, attempt)"
    " CROSS JOIN LATERAL (SELECT * FROM reservations f"
    " WHERE f.claim = k.claim AND f.attempt = k.attempt OFFSET 0) r"
    " LEFT JOIN prices p ON p.version = r.price_version),"
    " locked AS MATERIALIZED (SELECT org, latest_time, price_epoch FROM ledgers"
    " WHERE org = ANY (ARRAY("
    "SELECT org FROM known WHERE org IS NOT NULL UNION SELECT unnest($3::text[])))"
    " ORDER BY org FOR UPDATE)"
    " SELECT locked.org AS ledger, locked.latest_time, locked.price_epoch, known.*"
    " FROM locked FULL JOIN known ON known.org = locked.org"
)


_STATES: Final = {int(state): state for state in State}
"""Looked up, since to call an enumeration takes longer than all else of a row."""


def reservation_of(record: Record) -> Reservation:
    """The reservation of a row of SELECT_RESERVATIONS_LOCK_LEDGERS."""
    return Reservation(
        key=ReservationKey(record["claim"], record["attempt"]),
        state=_STATES[record["state"]],
        service=record["service"],
        day=record["day"],
        create_time=record["create_time"],
        account=record["account"] or "",
        item=record["item"] or "",
        price=_price_of(record),
        bound=_usage_of(record, "bound"),
        hold_nanos=record["hold_nanos"],
        own_limit_nanos=record["own_limit_nanos"],
        outer_limits_nanos=tuple(json.loads(record["outer_limits_nanos"] or "[]")),
        body_digest=record["body_digest"] or b"",
        posted_nanos=record["posted_nanos"],
        overrun_nanos=record["overrun_nanos"],
        used=None if record["used_calls"] is None else _usage_of(record, "used"),
        close_time=record["close_time"],
        transfers=record["transfers"],
    )


def _price_of(record: Record) -> Price:
    return Price(
        version=record["price_version"] or "",
        source=record["price_source"] or "",
        input_nanos_per_million=record["input_nanos_per_million"] or 0,
        cached_input_nanos_per_million=record["cached_input_nanos_per_million"] or 0,
        output_nanos_per_million=record["output_nanos_per_million"] or 0,
        call_nanos=record["call_nanos"] or 0,
    )


def _usage_of(record: Record, prefix: str) -> Usage:
    return Usage(
        input_tokens=record[f"{prefix}_input_tokens"],
        cached_input_tokens=record[f"{prefix}_cached_input_tokens"],
        output_tokens=record[f"{prefix}_output_tokens"],
        calls=record[f"{prefix}_calls"],
        estimated=prefix == "used" and record["used_estimated"],
    )


def _json_or_none(limits_nanos: Sequence[int | None]) -> str | None:
    """Most runs are nobody's sub-run."""
    return json.dumps(limits_nanos) if limits_nanos else None


def _owner(row: Reservation, kind: str) -> str | None:
    return (getattr(owners_of(row.account), kind) or None) if row.account else None


# ------------------------------------------------------ ledgers, prices, transfers and balances

ClockRow = tuple[str, datetime]
LATEST_TIMES: Final[Write[ClockRow]] = Write(
    (
        Column("org", "text", lambda row: row[0]),
        Column("latest_time", "timestamptz", lambda row: row[1]),
    ),
    "UPDATE ledgers l SET latest_time = n.latest_time FROM",
    " WHERE l.org = n.org",
)


@dataclass(frozen=True, slots=True)
class PinnedPrice:
    """A price and the item it is of."""

    item: str
    price: Price


PRICE_COLUMNS: Final[tuple[Column[PinnedPrice], ...]] = (
    Column("version", "text", lambda row: row.price.version),
    Column("item", "text", lambda row: row.item),
    Column("input_nanos_per_million", "bigint", lambda row: row.price.input_nanos_per_million),
    Column(
        "cached_input_nanos_per_million",
        "bigint",
        lambda row: row.price.cached_input_nanos_per_million,
    ),
    Column("output_nanos_per_million", "bigint", lambda row: row.price.output_nanos_per_million),
    Column("call_nanos", "bigint", lambda row: row.price.call_nanos),
)
NEW_PRICES: Final = _insert("prices", PRICE_COLUMNS, " ON CONFLICT (version) DO NOTHING")

TRANSFER_COLUMNS: Final[tuple[Column[Transfer], ...]] = (
    Column("claim", "text", lambda row: row.claim),
    Column("attempt", "integer", lambda row: row.attempt),
    Column("sequence", "smallint", lambda row: row.sequence),
    Column("kind", "smallint", lambda row: int(row.kind)),
    Column("debit_account", "text", lambda row: row.debit_account),
    Column("credit_account", "text", lambda row: row.credit_account),
    Column("amount_nanos", "bigint", lambda row: row.amount_nanos),
    Column("day", "date", lambda row: row.day),
    Column("post_time", "timestamptz", lambda row: row.post_time),
)
NEW_TRANSFERS: Final = _insert("transfers", TRANSFER_COLUMNS)

BalanceRow = tuple[BalanceKey, Balance]
BALANCE_COLUMNS: Final[tuple[Column[BalanceRow], ...]] = (
    Column("account", "text", lambda row: row[0].account),
    Column("period", "smallint", lambda row: int(row[0].period)),
    Column("start", "date", lambda row: row[0].start),
    Column("pending_nanos", "bigint", lambda row: row[1].pending_nanos),
    Column("posted_nanos", "bigint", lambda row: row[1].posted_nanos),
)
CHANGED_BALANCES: Final = _insert(
    "balances",
    BALANCE_COLUMNS,
    " ON CONFLICT (account, period, start) DO UPDATE"
    " SET pending_nanos = EXCLUDED.pending_nanos, posted_nanos = EXCLUDED.posted_nanos",
)
_KEYS: Final = "unnest($1::text[], $2::smallint[], $3::date[])"
_BALANCE_OF_KEY: Final = (
    "(SELECT * FROM balances f WHERE f.account = k.account"
    " AND f.period = k.period AND f.start = k.start OFFSET 0)"
)
SELECT_BALANCES: Final = (
    "SELECT b.account, b.period, b.start, b.pending_nanos, b.posted_nanos"  # noqa: S608 - constants of this module
    f" FROM {_KEYS} AS k (account, period, start) CROSS JOIN LATERAL {_BALANCE_OF_KEY} b"
)

# The balances that exist of the keys $1, $2, $3, each with the place of its key, from 1, and the
# budgets of accounts $4, without a place. (Keys that came back would have to be made once more.)
SELECT_BALANCES_AND_BUDGETS: Final = (
    "SELECT k.place, b.pending_nanos, b.posted_nanos,"  # noqa: S608 - constants of this module
    " NULL::text AS account, NULL::smallint AS period, NULL::bigint AS limit_nanos,"
    " NULL::smallint AS enforcement, NULL::smallint[] AS alert_percents"
    f" FROM {_KEYS} WITH ORDINALITY AS k (account, period, start, place)"
    f" CROSS JOIN LATERAL {_BALANCE_OF_KEY} b"
    " UNION ALL SELECT NULL, NULL, NULL, account, period, limit_nanos, enforcement, alert_percents"
    " FROM budgets WHERE account = ANY ($4::text[])"
)


def terms_of(record: Record) -> Terms:
    """The terms of a row of `budgets`."""
    return Terms(
        limit_nanos=record["limit_nanos"],
        enforcement=Enforcement(record["enforcement"]),
        alert_percents=tuple(record["alert_percents"]),
    )


# -------------------------------------------------------------------------------------- alerts

ALERT_COLUMNS: Final[tuple[Column[Alert], ...]] = (
    Column("org", "text", lambda row: row.org),
    Column("account", "text", lambda row: row.account),
    Column("period", "smallint", lambda row: int(row.period)),
    Column("run_account", "text", lambda row: row.run_account),
    Column("start", "date", lambda row: row.key.start),
    Column("percent", "smallint", lambda row: row.percent),
    Column("limit_nanos", "bigint", lambda row: row.terms.limit_nanos),
    Column("posted_nanos", "bigint", lambda row: row.posted_nanos),
    Column("enforcement", "smallint", lambda row: int(row.terms.enforcement)),
    Column("is_default", "boolean", lambda row: row.terms.is_default),
    Column("subject", "text", lambda row: row.cause.subject),
    Column("run", "text", lambda row: row.cause.run or None),
    Column("claim", "text", lambda row: row.cause.claim or None),
    Column("fire_time", "timestamptz", lambda row: row.fire_time),
)
# No posting makes an alert due twice. Should one that is there come again (a balance was restored
# by hand), it stays as it is, and money is not kept from being settled by it.
NEW_ALERTS: Final = _insert(
    "budget_alerts",
    ALERT_COLUMNS,
    " ON CONFLICT (account, period, run_account, start, is_default, percent, limit_nanos) DO UPDATE"
    " SET record_time = budget_alerts.record_time",
)
