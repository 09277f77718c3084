-- What a budget does at its limit (1 HARD, 2 SOFT), at which percents of it an alert is fired, and the
-- alerts that were. Budgets can be deleted; who did it is in `admin_requests` and in the audit log.

ALTER TABLE budgets
    ADD COLUMN enforcement smallint NOT NULL DEFAULT 1 CHECK (enforcement IN (1, 2)),
    ADD COLUMN alert_percents smallint[] NOT NULL DEFAULT '{80,100}'
        CHECK (cardinality(alert_percents) BETWEEN 1 AND 8
            AND 1 <= ALL (alert_percents) AND 1000 >= ALL (alert_percents));

-- Append-only. A row is committed with the postings that made it due, or with the change of the limit,
-- and is the outbox from which it reaches the audit log (`record_time` is null until it is there).
CREATE TABLE budget_alerts (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    org text NOT NULL REFERENCES ledgers (org),
    account text NOT NULL CHECK (account = org OR starts_with(account, org || '/')),
    period smallint NOT NULL CHECK (period IN (1, 2, 3)),
    start date NOT NULL,
    percent smallint NOT NULL CHECK (percent BETWEEN 1 AND 1000),
    limit_nanos bigint NOT NULL CHECK (limit_nanos >= 0),
    posted_nanos bigint NOT NULL CHECK (posted_nanos > 0),
    enforcement smallint NOT NULL CHECK (enforcement IN (1, 2)),
    is_default boolean NOT NULL,
    subject text NOT NULL,
    -- The effect that made it due; null where a limit was set that was reached already.
    run text,
    claim text,
    fire_time timestamptz NOT NULL,
    record_time timestamptz,
    UNIQUE (account, period, start, is_default, percent, limit_nanos),
    CHECK (posted_nanos::numeric * 100 >= limit_nanos::numeric * percent)
);
CREATE INDEX budget_alerts_of_org ON budget_alerts (org, number);
CREATE INDEX budget_alerts_unrecorded ON budget_alerts (number) WHERE record_time IS NULL;

GRANT SELECT, INSERT, UPDATE (record_time) ON budget_alerts TO remit_cost;
GRANT DELETE, UPDATE (enforcement, alert_percents) ON budgets TO remit_cost;
