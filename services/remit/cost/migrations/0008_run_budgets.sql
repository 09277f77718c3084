-- Budgets of each run, the period 4: an alert of one names the account of the run that it is about.

ALTER TABLE budgets
    DROP CONSTRAINT budgets_period_check,
    ADD CONSTRAINT budgets_period_check CHECK (period IN (1, 2, 3, 4));
ALTER TABLE budget_alerts
    DROP CONSTRAINT budget_alerts_period_check,
    ADD CONSTRAINT budget_alerts_period_check CHECK (period IN (1, 2, 3, 4)),
    ADD COLUMN run_account text NOT NULL DEFAULT '',
    ADD CONSTRAINT budget_alerts_run_account_check
        CHECK (CASE period
            WHEN 4 THEN starts_with(run_account || '/', account || '/') AND run_account LIKE '%/runs/%'
            ELSE run_account = ''
        END),
    DROP CONSTRAINT budget_alerts_account_period_start_is_default_percent_limit_key,
    ADD CONSTRAINT budget_alerts_once
        UNIQUE (account, period, run_account, start, is_default, percent, limit_nanos);
