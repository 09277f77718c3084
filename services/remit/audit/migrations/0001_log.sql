-- The log. Its rows are written once: the service role may INSERT and SELECT, nothing else.
--
-- `leaves` is the log's spine and is never pruned: the index, the unique event id and the leaf hash,
-- which is level 0 of the Merkle tree. `nodes` holds the complete subtrees of levels 8, 16, 24, ...
-- (the levels between are recomputed from at most 256 hashes). `events` holds the leaf's bytes and the
-- encrypted payload, partitioned by the month of appending, so that old months can be archived and
-- dropped while every proof still works.

CREATE TABLE leaves (
    leaf_index bigint PRIMARY KEY CHECK (leaf_index >= 0),
    event_id text COLLATE "C" NOT NULL UNIQUE CHECK (length(event_id) BETWEEN 1 AND 128),
    leaf_hash bytea NOT NULL CHECK (octet_length(leaf_hash) = 32)
);

CREATE TABLE nodes (
    level smallint NOT NULL CHECK (level > 0 AND level % 8 = 0),
    position bigint NOT NULL CHECK (position >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (level, position)
);

CREATE TABLE events (
    leaf_index bigint NOT NULL,
    append_time timestamptz NOT NULL,
    event_time timestamptz NOT NULL,
    org text COLLATE "C" NOT NULL,
    subject_pseudonym bytea NOT NULL CHECK (octet_length(subject_pseudonym) = 32),
    kind text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    run text COLLATE "C" NOT NULL,
    claim text COLLATE "C" NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    leaf bytea NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (leaf_index, append_time)
) PARTITION BY RANGE (append_time);

CREATE INDEX events_by_org ON events (org, leaf_index);
CREATE INDEX events_by_run ON events (run, leaf_index) WHERE run <> '';
CREATE INDEX events_by_claim ON events (claim, leaf_index) WHERE claim <> '';

CREATE TABLE checkpoints (
    tree_size bigint NOT NULL CHECK (tree_size >= 0),
    key_id bytea NOT NULL CHECK (octet_length(key_id) = 4),
    root_hash bytea NOT NULL CHECK (octet_length(root_hash) = 32),
    signed_note text NOT NULL,
    sign_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tree_size, key_id)
);

-- Makes the partitions of this month and the next. The service role cannot create tables; it may call
-- this, which takes no arguments and so cannot be bent.
CREATE FUNCTION prepare_partitions() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    month timestamp;
    partition text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('remit_audit_partitions'));
    FOR month IN
        SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead)
        FROM generate_series(0, 1) AS ahead
    LOOP
        partition := 'events_' || to_char(month, 'YYYY_MM');
        IF to_regclass(quote_ident(partition)) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
                partition,
                month AT TIME ZONE 'UTC',
                (month + interval '1 month') AT TIME ZONE 'UTC'
            );
        END IF;
    END LOOP;
END
$$;

SELECT prepare_partitions();

REVOKE ALL ON FUNCTION prepare_partitions() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION prepare_partitions() TO remit_audit;
GRANT INSERT, SELECT ON leaves, nodes, events, checkpoints TO remit_audit;
