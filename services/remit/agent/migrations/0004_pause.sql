-- A paused run keeps its state and its place; nobody may take it until it is resumed.
--
-- Its deadline stands still: resuming adds the time of the pause. `control_request` is the request that
-- paused or resumed it last, so that the same request gets the same answer.

ALTER TABLE runs
    ADD COLUMN pause_time timestamptz,
    ADD COLUMN control_request text;

GRANT UPDATE (pause_time, control_request, deadline_time) ON runs TO remit_agent;
