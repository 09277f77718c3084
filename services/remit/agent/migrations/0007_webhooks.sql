-- Webhooks: the ends of runs that are still to be told, and how telling them went.
--
-- A row is written by the commit that ends its run, and never before. Whoever holds its lease tries; `claims`
-- grows with each claim, so that one who lost the lease records nothing.

CREATE TABLE webhook_deliveries (
    run               uuid PRIMARY KEY REFERENCES runs (run),
    state             smallint NOT NULL DEFAULT 2 CHECK (state BETWEEN 2 AND 4),
    tries             integer NOT NULL DEFAULT 0 CHECK (tries >= 0),
    create_time       timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_try_time     timestamptz NOT NULL DEFAULT clock_timestamp(),
    end_time          timestamptz,
    -- google.rpc.Status of the newest try that failed.
    error             bytea,
    claims            bigint NOT NULL DEFAULT 0,
    owner             text,
    lease_expire_time timestamptz,
    CHECK ((owner IS NULL) = (lease_expire_time IS NULL)),
    CHECK ((state > 2) = (end_time IS NOT NULL)),
    CHECK (state = 2 OR owner IS NULL)
);

-- Few are pending, so looking for those that are due never reads the history.
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (next_try_time) WHERE state = 2;

GRANT SELECT, INSERT ON webhook_deliveries TO remit_agent;
GRANT UPDATE (state, tries, next_try_time, end_time, error, claims, owner, lease_expire_time)
    ON webhook_deliveries TO remit_agent;
