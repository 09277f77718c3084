-- Approvals: a run that waits for people holds no worker. Which approvals it waits for is kept while it
-- does; a replica that learns that one is decided clears it, and the run is taken up again.

ALTER TABLE runs
    ADD COLUMN awaits_approvals text[] CHECK (cardinality(awaits_approvals) > 0);

CREATE INDEX runs_await_approvals ON runs (run) WHERE awaits_approvals IS NOT NULL;

GRANT UPDATE (awaits_approvals) ON runs TO remit_agent;
