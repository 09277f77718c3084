"""The SQL of claims, and how steps and attempts become its parameters and come of its rows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from remit.effects.claims import OPEN_STATES, Attempt, Ended, Outcome, SealedEnd, State
from remit.effects.steps import Begin, Change, Close, Extend, Finish, Refuse, Renew, Start, Unclosed

INSERT_FRESH: Final = """
WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[],
                         $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[])
        AS t (claim, org, principal, method, key, body_digest, presenter,
              subject, run, action, resource, trace_id)
), fresh AS (
    INSERT INTO effect_claims (claim, org, principal, method, key, body_digest, presenter, attempt)
    SELECT claim, org, principal, method, key, body_digest, presenter, 1 FROM asked
    ORDER BY org, principal, method, key
    ON CONFLICT DO NOTHING
    RETURNING claim
)
INSERT INTO effect_attempts (claim, attempt, state, owner, lease_expires,
                             subject, run, action, resource, trace_id)
SELECT claim, 1, 'CLAIMED', $13, clock_timestamp() + $14::interval,
       subject, run, action, resource, trace_id
FROM asked JOIN fresh USING (claim)
RETURNING claim
"""

READ_KNOWN: Final = """
SELECT c.claim, c.attempt, c.body_digest, a.subject, a.state, a.owner, a.intent_leaf, a.outcome,
       a.result, a.result_digest, a.error, a.used, a.cost_nanos, a.repeatable, a.is_sealed,
       a.sealed_digest,
       extract(epoch FROM a.lease_expires - clock_timestamp())::float8 AS lease_left_s
FROM effect_claims c JOIN effect_attempts a USING (claim, attempt)
WHERE c.org = $1 AND c.principal = $2 AND c.method = $3 AND c.key = $4
"""

SELECT_KNOWN: Final = f"{READ_KNOWN}FOR UPDATE OF c, a\n"

INSERT_NEXT: Final = """
WITH next AS (
    UPDATE effect_claims SET attempt = attempt + 1 WHERE claim = $1 RETURNING claim, attempt
)
INSERT INTO effect_attempts (claim, attempt, state, owner, lease_expires,
                             subject, run, action, resource, trace_id)
SELECT claim, attempt, 'CLAIMED', $2, clock_timestamp() + $3::interval, $4, $5, $6, $7, $8
FROM next
RETURNING attempt
"""

START: Final = """
UPDATE effect_attempts a
SET state = 'STARTED', decision_id = t.decision_id, reservation = t.reservation,
    intent_leaf = t.intent_leaf, hold_nanos = t.hold_nanos, update_time = clock_timestamp(),
    lease_expires = clock_timestamp() + $8::interval
FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])
    AS t (claim, attempt, decision_id, reservation, intent_leaf, hold_nanos)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.state = 'CLAIMED' AND a.owner = $7
RETURNING a.claim, a.attempt
"""

EXTEND: Final = """
UPDATE effect_attempts a SET hold_nanos = t.hold_nanos
FROM unnest($1::uuid[], $2::int[], $3::bigint[]) AS t (claim, attempt, hold_nanos)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.owner = $4 AND a.state = 'STARTED'
RETURNING a.claim, a.attempt
"""

FINISH: Final = """
UPDATE effect_attempts a
SET state = 'DONE', outcome = t.outcome, result = t.result, error = t.error,
    sealed_digest = t.digest, is_sealed = true, used = t.used, cost_nanos = t.cost_nanos,
    repeatable = t.repeatable, update_time = clock_timestamp(), closed_time = NULL
FROM unnest($1::uuid[], $2::int[], $3::text[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[],
            $8::bigint[], $9::bool[])
    AS t (claim, attempt, outcome, result, error, digest, used, cost_nanos, repeatable)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.owner = $10
    AND a.state IN ('STARTED', 'IN_DOUBT')
RETURNING a.claim, a.attempt
"""

HOLDS_END: Final = """
SELECT EXISTS (
    SELECT FROM effect_attempts
    WHERE claim = $1 AND attempt = $2 AND owner = $3 AND state IN ('DONE', 'CLOSED')
        AND outcome = $4 AND coalesce(result, $5) = $5 AND error = $6 AND sealed_digest = $7
)
"""

REFUSE: Final = """
UPDATE effect_attempts a
SET state = 'REFUSED', outcome = 'REFUSED', error = t.error, is_sealed = t.is_sealed,
    update_time = clock_timestamp()
FROM unnest($1::uuid[], $2::int[], $3::bytea[], $4::bool[]) AS t (claim, attempt, error, is_sealed)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.owner = $5
    AND a.state IN ('CLAIMED', 'STARTED')
RETURNING a.claim, a.attempt
"""

CLOSE: Final = """
UPDATE effect_attempts a
SET closed_time = clock_timestamp(),
    state = CASE WHEN a.state = 'DONE' THEN 'CLOSED' ELSE a.state END
FROM unnest($1::uuid[], $2::int[], $3::text[]) AS t (claim, attempt, outcome)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.closed_time IS NULL
    AND a.outcome = t.outcome
RETURNING a.claim, a.attempt
"""

RENEW: Final = """
UPDATE effect_attempts a SET lease_expires = clock_timestamp() + $4::interval
FROM unnest($1::uuid[], $2::int[]) AS t (claim, attempt)
WHERE a.claim = t.claim AND a.attempt = t.attempt AND a.owner = $3
    AND a.state IN ('CLAIMED', 'STARTED')
RETURNING a.claim, a.attempt
"""

LAPSE: Final = """
UPDATE effect_attempts
SET state = $2, outcome = $2, update_time = clock_timestamp()
WHERE (claim, attempt) IN (
    SELECT claim, attempt FROM effect_attempts
    WHERE state = $1 AND lease_expires < clock_timestamp()
        AND state IN ('CLAIMED', 'STARTED') -- or a generic plan could not use the index
    ORDER BY claim, attempt LIMIT $3 FOR UPDATE SKIP LOCKED
) AND state = $1
RETURNING claim
"""

LAPSE_ONE: Final = """
UPDATE effect_attempts SET state = $3, outcome = $3, update_time = clock_timestamp()
WHERE claim = $1 AND attempt = $2 AND state = $4
"""

SELECT_UNCLOSED: Final = """
SELECT c.org, a.claim, a.attempt, a.outcome, a.subject, a.run, a.action, a.resource, a.trace_id,
       a.decision_id, a.used, a.error, a.cost_nanos, a.update_time, a.is_sealed,
       CASE WHEN a.is_sealed THEN CASE WHEN a.result = '' THEN NULL ELSE a.sealed_digest END
            ELSE coalesce(a.result_digest, CASE WHEN a.result <> '' THEN sha256(a.result) END)
       END AS result_digest
FROM effect_attempts a JOIN effect_claims c USING (claim)
WHERE a.outcome IS NOT NULL AND a.closed_time IS NULL
    AND a.update_time < clock_timestamp() - $1::interval
    AND (a.update_time, a.claim, a.attempt) > ($3::timestamptz, $4::uuid, $5::int)
ORDER BY a.update_time, a.claim, a.attempt LIMIT $2
"""

# Locked in the order of their claims, as every batch of changes locks them.
ACKNOWLEDGE: Final = """
WITH known AS MATERIALIZED (
    SELECT c.claim, a.attempt, a.outcome, a.result IS NOT NULL AS is_kept
    FROM effect_claims c JOIN effect_attempts a USING (claim, attempt)
    WHERE c.claim = ANY($1::uuid[]) AND c.presenter = $2
    ORDER BY c.claim, a.attempt FOR UPDATE OF a
), dropped AS (
    UPDATE effect_attempts a
    SET result = NULL, result_digest = CASE WHEN NOT a.is_sealed THEN sha256(a.result) END
    FROM known
    WHERE a.claim = known.claim AND a.attempt = known.attempt
        AND known.outcome = 'SUCCEEDED' AND known.is_kept
)
SELECT claim, outcome FROM known
"""

BEFORE_THE_FIRST: Final = (datetime.min.replace(tzinfo=UTC), UUID(int=0), 0)

CHANGE_STATEMENTS: Final[dict[type[Any], str]] = {
    Start: START,
    Extend: EXTEND,
    Finish: FINISH,
    Refuse: REFUSE,
    Close: CLOSE,
    Renew: RENEW,
}


def begin_columns(begin: Begin) -> tuple[Any, ...]:
    """One row of INSERT_FRESH; from the eighth on they are INSERT_NEXT's too."""
    return (
        begin.claim,
        begin.org,
        begin.principal,
        begin.method,
        begin.key,
        begin.body_digest,
        begin.presenter,
        begin.subject,
        begin.run,
        begin.action,
        begin.resource,
        begin.trace_id,
    )


def change_values(change: Change) -> tuple[Any, ...]:
    """One row of the statement of the change's kind."""
    match change:
        case Start(claim, attempt, decision_id, reservation, intent_leaf, hold_nanos):
            return (claim, attempt, decision_id, reservation, intent_leaf, hold_nanos)
        case Extend(claim, attempt, hold_nanos):
            return (claim, attempt, hold_nanos)
        case Finish(claim, attempt, end):
            return (
                claim,
                attempt,
                end.outcome,
                end.result,
                end.error,
                end.digest,
                end.used,
                end.cost_nanos,
                end.repeatable,
            )
        case Refuse(claim, attempt, error, is_sealed):
            return (claim, attempt, error, is_sealed)
        case Close(claim, attempt, outcome):
            return (claim, attempt, outcome)
        case Renew(claim, attempt):
            return (claim, attempt)


def attempt_of(row: Any) -> Attempt:  # noqa: ANN401 - asyncpg.Record
    """The attempt in a row of SELECT_KNOWN."""
    state = State(row["state"])
    return Attempt(
        claim=str(row["claim"]),
        attempt=row["attempt"],
        state=state,
        owner=row["owner"],
        lease_left_s=row["lease_left_s"],
        body_digest=row["body_digest"],
        intent_leaf=row["intent_leaf"],
        ended=None if state in OPEN_STATES else _end_of(row),
        subject=row["subject"],
    )


def _end_of(row: Any) -> Ended | SealedEnd:  # noqa: ANN401 - asyncpg.Record
    outcome, used = Outcome(row["outcome"]), row["used"] or b""
    result, error = row["result"] or b"", row["error"] or b""
    cost_nanos, repeatable = row["cost_nanos"] or 0, row["repeatable"]
    if not row["is_sealed"]:
        digest = row["result_digest"] or b""
        return Ended(outcome, result, error, used, cost_nanos, repeatable, digest)
    digest, is_kept = row["sealed_digest"] or b"", row["result"] is not None
    return SealedEnd(outcome, result, error, digest, used, cost_nanos, repeatable, is_kept)


def lapsed(known: Attempt, after: State) -> Attempt:
    """The attempt after its owner's lease has lapsed."""
    ended = Ended(Outcome(after.value), b"", b"", b"", 0, repeatable=False)
    return Attempt(
        known.claim,
        known.attempt,
        after,
        known.owner,
        known.lease_left_s,
        known.body_digest,
        known.intent_leaf,
        ended,
        known.subject,
    )


def unclosed_of(row: Any) -> Unclosed:  # noqa: ANN401 - asyncpg.Record
    """The ended attempt in a row of SELECT_UNCLOSED."""
    return Unclosed(
        org=row["org"],
        claim=str(row["claim"]),
        attempt=row["attempt"],
        outcome=Outcome(row["outcome"]),
        subject=row["subject"],
        run=row["run"],
        action=row["action"],
        resource=row["resource"],
        trace_id=row["trace_id"],
        decision_id=row["decision_id"] or "",
        used=row["used"] or b"",
        error=row["error"] or b"",
        cost_nanos=row["cost_nanos"] or 0,
        result_digest=row["result_digest"] or b"",
        is_sealed=row["is_sealed"],
        end_time=row["update_time"],
    )


def interval(seconds: float) -> timedelta:
    """A duration as a parameter of a statement."""
    return timedelta(seconds=seconds)
