-- The ledger: prices, holds, the transfers that move money, balances, budgets, and the admin
-- requests that set them. Runs as remit_cost_owner. The service's role may insert transfers and read
-- them, never change or delete one; nothing here is ever deleted by it.

-- One row for each org that ever held money. Every batch locks the rows of its orgs, in order, and
-- so owns all balances and budgets of those orgs. `latest_time` is the time of the latest hold: a
-- clock that jumps back must not reopen a past period.
CREATE TABLE ledgers (
    org text PRIMARY KEY CHECK (org ~ '^orgs/[^/]+$'),
    latest_time timestamptz
) WITH (fillfactor = 50);

-- Prices that were ever pinned, by the digest of item and rates.
CREATE TABLE prices (
    version text PRIMARY KEY CHECK (version ~ '^[0-9a-f]{64}$'),
    item text NOT NULL CHECK (length(item) <= 200),
    input_nanos_per_million bigint NOT NULL CHECK (input_nanos_per_million >= 0),
    cached_input_nanos_per_million bigint NOT NULL CHECK (cached_input_nanos_per_million >= 0),
    output_nanos_per_million bigint NOT NULL CHECK (output_nanos_per_million >= 0),
    call_nanos bigint NOT NULL CHECK (call_nanos >= 0)
);

-- Holds and what became of them: state 1 HELD, 2 SETTLED, 3 RELEASED. A row without an account is a
-- tombstone: released before it was reserved. Path, day (hence every period) and price are pinned.
CREATE TABLE reservations (
    claim text NOT NULL CHECK (starts_with(claim, 'claims/') AND length(claim) <= 64),
    attempt integer NOT NULL CHECK (attempt >= 1),
    state smallint NOT NULL CHECK (state IN (1, 2, 3)),
    service text NOT NULL CHECK (length(service) BETWEEN 1 AND 32),
    day date NOT NULL,
    create_time timestamptz NOT NULL,
    close_time timestamptz CHECK (close_time >= create_time),
    -- The path: the leaf, and who stands on it, for reports.
    account text,
    org text REFERENCES ledgers (org),
    team text,
    user_name text,
    agent text,
    run text,
    -- What was bought, at which price, at most how much. The source 'unlisted' marks an item that no
    -- list knows and that settings let pass for nothing: its price is unknown, not zero.
    item text,
    price_version text REFERENCES prices (version),
    price_source text CHECK (price_source IN ('shipped', 'file', 'genai-prices', 'unlisted')),
    bound_input_tokens bigint NOT NULL CHECK (bound_input_tokens >= 0),
    bound_cached_input_tokens bigint NOT NULL CHECK (bound_cached_input_tokens >= 0),
    bound_output_tokens bigint NOT NULL CHECK (bound_output_tokens >= 0),
    bound_calls bigint NOT NULL CHECK (bound_calls >= 0),
    hold_nanos bigint NOT NULL CHECK (hold_nanos >= 0),
    own_limit_nanos bigint CHECK (own_limit_nanos >= 0),
    body_digest bytea,
    -- What was used. Null until settled, and where the whole hold was posted.
    used_input_tokens bigint CHECK (used_input_tokens >= 0),
    used_cached_input_tokens bigint CHECK (used_cached_input_tokens >= 0),
    used_output_tokens bigint CHECK (used_output_tokens >= 0),
    used_calls bigint CHECK (used_calls >= 0),
    used_estimated boolean,
    posted_nanos bigint NOT NULL CHECK (posted_nanos BETWEEN 0 AND hold_nanos),
    overrun_nanos bigint NOT NULL CHECK (overrun_nanos >= 0),
    transfers smallint NOT NULL CHECK (transfers >= 0),
    PRIMARY KEY (claim, attempt),
    CHECK (state = 2 OR (posted_nanos = 0 AND overrun_nanos = 0 AND used_calls IS NULL)),
    CHECK (overrun_nanos = 0 OR posted_nanos = hold_nanos),
    CHECK ((state = 1) = (close_time IS NULL)),
    CHECK (
        (account IS NULL AND state = 3 AND hold_nanos = 0 AND transfers = 0)
        OR num_nulls(account, org, item, price_version, price_source, body_digest) = 0
    )
) WITH (fillfactor = 60);
CREATE INDEX reservations_of_org ON reservations (org, create_time) WHERE account IS NOT NULL;

-- Every movement of money: kind 1 HOLD, 2 POST, 3 VOID, 4 OVERRUN. One row debits one account and
-- credits another by the same amount, so debits equal credits. Append-only.
CREATE TABLE transfers (
    claim text NOT NULL,
    attempt integer NOT NULL,
    sequence smallint NOT NULL CHECK (sequence >= 1),
    kind smallint NOT NULL CHECK (kind IN (1, 2, 3, 4)),
    debit_account text NOT NULL,
    credit_account text NOT NULL CHECK (credit_account LIKE 'operator/orgs/%/revenue'),
    amount_nanos bigint NOT NULL CHECK (amount_nanos > 0),
    day date NOT NULL,
    post_time timestamptz NOT NULL,
    PRIMARY KEY (claim, attempt, sequence),
    FOREIGN KEY (claim, attempt) REFERENCES reservations (claim, attempt),
    CHECK ((kind = 4) = (debit_account LIKE 'operator/orgs/%/overrun'))
);

-- What is held and spent by account and period: 1 TOTAL, 2 DAY, 3 MONTH. It follows from transfers
-- and is kept so that an admission reads a handful of rows. A run has TOTAL alone.
CREATE TABLE balances (
    account text NOT NULL,
    period smallint NOT NULL CHECK (period IN (1, 2, 3)),
    start date NOT NULL,
    pending_nanos bigint NOT NULL CHECK (pending_nanos >= 0),
    posted_nanos bigint NOT NULL CHECK (posted_nanos >= 0),
    PRIMARY KEY (account, period, start),
    CHECK (pending_nanos <= 9223372036854775807 - posted_nanos)
) WITH (fillfactor = 50);

-- Limits that somebody set. An org without a row for its own account has the default of settings.
CREATE TABLE budgets (
    account text NOT NULL CHECK (length(account) <= 600),
    period smallint NOT NULL CHECK (period IN (1, 2, 3)),
    org text NOT NULL REFERENCES ledgers (org),
    limit_nanos bigint NOT NULL CHECK (limit_nanos >= 0),
    update_time timestamptz NOT NULL,
    PRIMARY KEY (account, period),
    CHECK (account = org OR starts_with(account, org || '/'))
);
CREATE INDEX budgets_of_org ON budgets (org, account COLLATE "C", period);

-- Every admin change by who asked and the id they gave it: it dedupes repetitions, and it is the
-- outbox from which the change reaches the audit log (`record_time` is null until it is there).
CREATE TABLE admin_requests (
    subject text NOT NULL CHECK (length(subject) <= 400),
    method text NOT NULL,
    request_id text NOT NULL CHECK (length(request_id) BETWEEN 1 AND 64),
    org text NOT NULL,
    body_digest bytea NOT NULL CHECK (octet_length(body_digest) = 32),
    action text NOT NULL,
    resource text NOT NULL,
    detail text NOT NULL,
    trace_id text NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    record_time timestamptz,
    PRIMARY KEY (subject, method, request_id)
);
CREATE INDEX admin_requests_unrecorded ON admin_requests (create_time) WHERE record_time IS NULL;

GRANT SELECT, INSERT ON prices, transfers TO remit_cost;
GRANT SELECT, INSERT, UPDATE (latest_time) ON ledgers TO remit_cost;
GRANT SELECT, INSERT, UPDATE (
    state, close_time, bound_input_tokens, bound_cached_input_tokens, bound_output_tokens,
    bound_calls, hold_nanos, used_input_tokens, used_cached_input_tokens, used_output_tokens,
    used_calls, used_estimated, posted_nanos, overrun_nanos, transfers
) ON reservations TO remit_cost;
GRANT SELECT, INSERT, UPDATE (pending_nanos, posted_nanos) ON balances TO remit_cost;
GRANT SELECT, INSERT, UPDATE (limit_nanos, update_time) ON budgets TO remit_cost;
GRANT SELECT, INSERT, UPDATE (record_time) ON admin_requests TO remit_cost;
