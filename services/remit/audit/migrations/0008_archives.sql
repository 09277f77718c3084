-- Old months may go: `drop_month` drops the events of one, once the log itself says that they are
-- archived. Leaf hashes and nodes stay, so every proof still works.
--
-- The role that may call it can do nothing else: it reads no table and writes none. What it may drop,
-- the service says, by an entry of the log whose id names the month and the digest of its contents;
-- the service in turn can drop nothing. The digest is computed anew from what is about to be dropped.

CREATE TABLE archived_months (
    month date PRIMARY KEY CHECK (month = date_trunc('month', month)),
    first_index bigint NOT NULL,
    last_index bigint NOT NULL CHECK (last_index >= first_index),
    events bigint NOT NULL CHECK (events > 0),
    kept_events bigint NOT NULL,
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    entry_index bigint NOT NULL,
    drop_time timestamptz NOT NULL DEFAULT now()
);

-- The digest of a month is a chain, as `archive_file` makes it: SHA-256 of the digest so far, the index
-- and the append time in microseconds (8 bytes each, big endian) and the payload, in leaf order.
CREATE FUNCTION month_digest(partition regclass, OUT events bigint, OUT digest bytea)
    LANGUAGE plpgsql STABLE SET search_path = public, pg_temp
AS $$
DECLARE
    event record;
BEGIN
    events := 0;
    digest := decode(repeat('00', 32), 'hex');
    FOR event IN EXECUTE format(
        'SELECT leaf_index, append_time, payload FROM %s ORDER BY leaf_index', partition
    ) LOOP
        events := events + 1;
        digest := sha256(
            digest || int8send(event.leaf_index)
            || int8send((extract(epoch FROM event.append_time) * 1000000)::bigint) || event.payload
        );
    END LOOP;
END
$$;

-- What audit itself recorded stays, whatever its month: a few entries, and the erasures among them are
-- read at every start. They move to a new partition of the same month.
--
-- Waiting for a lock on `events` would make every append wait behind it, so it does not wait long.
CREATE FUNCTION drop_month(dropped date) RETURNS archived_months
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '2s'
AS $$
DECLARE
    first_day CONSTANT timestamp := dropped::timestamp;
    next_month CONSTANT timestamp := dropped::timestamp + interval '1 month';
    label CONSTANT text := to_char(dropped, 'YYYY-MM');
    partition CONSTANT text := 'events_' || to_char(dropped, 'YYYY_MM');
    old CONSTANT text := partition || '_old';
    gone archived_months;
BEGIN
    IF dropped IS NULL OR dropped <> date_trunc('month', dropped) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'not the first day of a month';
    END IF;
    IF first_day >= date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month' THEN
        RAISE object_not_in_prerequisite_state
            USING MESSAGE = label || ' is this month, the last one, or has not been yet';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('remit_audit_partitions'));
    SELECT * INTO gone FROM archived_months WHERE archived_months.month = dropped;
    IF FOUND THEN
        RETURN gone;
    END IF;
    IF to_regclass(quote_ident(partition)) IS NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'there are no events of ' || label;
    END IF;

    EXECUTE format('LOCK TABLE %I IN SHARE MODE', partition);
    gone.month := dropped;
    SELECT contents.events, contents.digest INTO gone.events, gone.digest
        FROM month_digest(partition::regclass) AS contents;
    EXECUTE format('SELECT min(leaf_index), max(leaf_index) FROM %I', partition)
        INTO gone.first_index, gone.last_index;
    SELECT leaf_index INTO gone.entry_index FROM leaves
        WHERE event_id = 'archive-' || label || '-' || encode(gone.digest, 'hex');
    IF gone.events = 0 OR gone.entry_index IS NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE =
            'the log does not say that the events of ' || label || ' are archived as they are';
    END IF;
    IF NOT EXISTS (SELECT FROM checkpoints WHERE tree_size > gone.entry_index) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE =
            'no checkpoint was signed since the archive of ' || label || ' was recorded';
    END IF;

    EXECUTE format('ALTER TABLE events DETACH PARTITION %I', partition);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', partition, old);
    EXECUTE format(
        'CREATE TABLE %I PARTITION OF events FOR VALUES FROM (%L) TO (%L)',
        partition, first_day AT TIME ZONE 'UTC', next_month AT TIME ZONE 'UTC'
    );
    EXECUTE format(
        'INSERT INTO events SELECT * FROM %I WHERE kind = ''ADMIN'' AND action LIKE ''audit.%%''', old
    );
    GET DIAGNOSTICS gone.kept_events = ROW_COUNT;
    EXECUTE format('DROP TABLE %I', old);
    gone.drop_time := now();
    INSERT INTO archived_months VALUES (gone.*);
    RETURN gone;
END
$$;

REVOKE ALL ON FUNCTION month_digest(regclass) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_month(date) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION drop_month(date) TO remit_audit_archiver;
GRANT SELECT ON archived_months TO remit_audit;
