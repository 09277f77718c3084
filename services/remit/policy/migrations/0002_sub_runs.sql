-- Sub-runs: which run started one, what a run may pass on without using it, and the limits above it.
--
-- `outer_limits_nanos` are those of the runs above a sub-run in nano-USD or null, the outermost first.

ALTER TABLE run_registrations
    ADD COLUMN parent text NOT NULL DEFAULT '' CHECK (length(parent) <= 64),
    ADD COLUMN delegable_tools text[] NOT NULL DEFAULT '{}',
    ADD COLUMN delegable_models text[] NOT NULL DEFAULT '{}',
    ADD COLUMN outer_limits_nanos bigint[] NOT NULL DEFAULT '{}';
