-- The bill of a run: its effects by its name, and those of the runs below it by the beginning of their
-- account, which an index in byte order serves whatever the database's collation is.

CREATE INDEX reservations_of_run ON reservations (run) WHERE run IS NOT NULL;
CREATE INDEX reservations_of_sub_runs ON reservations (account COLLATE "C")
    WHERE account LIKE '%/runs/%/runs/%';

-- A run that has an account and made no effect itself, found by the last part of the account's name.
CREATE INDEX balances_of_run ON balances (right(account, 41))
    WHERE account LIKE '%/runs/%' AND period = 1;
