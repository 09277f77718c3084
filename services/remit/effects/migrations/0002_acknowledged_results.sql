-- A result that its caller has recorded itself need not be kept here as well: the caller says so, and
-- the gate drops it and keeps its digest. Only who presented the remit of a claim may say so; of claims
-- that are older than this file nobody is known to have, and they keep their results.

ALTER TABLE effect_claims ADD COLUMN presenter text;

ALTER TABLE effect_attempts
    ADD COLUMN result_digest bytea CHECK (octet_length(result_digest) = 32),
    ADD CONSTRAINT dropped_or_kept CHECK (result IS NULL OR result_digest IS NULL);
