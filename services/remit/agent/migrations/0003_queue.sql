-- Which waiting run goes first within its org, and when a run may start.
--
-- A run whose time has not come waits in the same table and is no part of the queue until then.

ALTER TABLE runs
    ADD COLUMN priority smallint NOT NULL DEFAULT 3 CHECK (priority BETWEEN 1 AND 5),
    ADD COLUMN schedule_time timestamptz;
