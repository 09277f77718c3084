-- A sub-run spends its own limit and those of the runs above it: nano-USD or null, the outermost run first.
--
-- NULL for the holds of all other runs.

ALTER TABLE reservations ADD COLUMN outer_limits_nanos jsonb
    CHECK (jsonb_typeof(outer_limits_nanos) = 'array');
