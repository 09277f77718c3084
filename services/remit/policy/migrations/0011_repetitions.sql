-- The claim in doubt that what is asked would repeat; empty for any other effect.
ALTER TABLE approvals ADD COLUMN repeats_claim text NOT NULL DEFAULT '';
