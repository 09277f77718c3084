-- Decisions that were made, for a few days, so that a candidate set can be tried on them.
--
-- What a question was about is sealed under its subject's key: an erasure makes it noise. The table is
-- a ring of 32 partitions, one a day; a day's partition is emptied before its turn comes again, so
-- nothing is deleted row by row and no partition is ever made.
CREATE TABLE decisions (
    slot smallint NOT NULL CHECK (slot BETWEEN 0 AND 31),
    decision_time timestamptz NOT NULL,
    decision_id text NOT NULL CHECK (length(decision_id) <= 100),
    subject text NOT NULL CHECK (length(subject) <= 400),
    epoch bigint NOT NULL,
    allowed boolean NOT NULL,
    policy_ids text[] NOT NULL,
    sealed_question bytea NOT NULL,
    PRIMARY KEY (slot, decision_time, decision_id)
) PARTITION BY LIST (slot);

DO $$
BEGIN
    FOR slot IN 0..31 LOOP
        EXECUTE format('CREATE TABLE decisions_%s PARTITION OF decisions FOR VALUES IN (%s)', slot, slot);
        EXECUTE format('GRANT SELECT, TRUNCATE ON decisions_%s TO remit_policy', slot);
    END LOOP;
END
$$;

GRANT SELECT, INSERT ON decisions TO remit_policy;
