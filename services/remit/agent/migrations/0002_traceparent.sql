-- The trace that created a run (W3C Trace Context): whoever works on the run, now or after a crash, goes on in it.
--
-- NULL for runs that were created before.

ALTER TABLE runs ADD COLUMN traceparent text
    CHECK (traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$');
