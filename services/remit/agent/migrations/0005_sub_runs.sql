-- Sub-runs: a run that another run started as one of its steps.
--
-- A run that waits for nothing but its sub-runs holds no worker. Whether they still go on is never stored
-- twice: it is looked up when a worker looks for runs.

ALTER TABLE runs
    ADD COLUMN parent uuid REFERENCES runs (run),
    ADD COLUMN awaits_sub_runs boolean NOT NULL DEFAULT false;

CREATE INDEX runs_of_parent ON runs (parent, run) WHERE parent IS NOT NULL;
CREATE INDEX sub_runs_unfinished ON runs (parent) WHERE state < 3 AND parent IS NOT NULL;

GRANT UPDATE (awaits_sub_runs) ON runs TO remit_agent;
