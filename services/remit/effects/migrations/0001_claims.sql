-- The claims of the effect gate (DESIGN section 5). A claim is found by its key; each try of it is an
-- attempt, and the newest attempt alone says where the effect stands.

CREATE TABLE effect_claims (
    claim        uuid PRIMARY KEY,
    org          text NOT NULL,
    principal    text NOT NULL,
    method       text NOT NULL,
    key          text NOT NULL,
    body_digest  bytea NOT NULL CHECK (octet_length(body_digest) = 32),
    attempt      integer NOT NULL CHECK (attempt >= 1),
    create_time  timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (org, principal, method, key)
);

CREATE TABLE effect_attempts (
    claim         uuid NOT NULL REFERENCES effect_claims,
    attempt       integer NOT NULL CHECK (attempt >= 1),
    state         text NOT NULL
        CHECK (state IN ('CLAIMED', 'STARTED', 'DONE', 'CLOSED', 'REFUSED', 'IN_DOUBT')),
    owner         text NOT NULL,
    lease_expires timestamptz NOT NULL,
    -- What the log must be told, whoever closes the attempt.
    subject       text NOT NULL,
    run           text NOT NULL,
    action        text NOT NULL,
    resource      text NOT NULL,
    trace_id      text NOT NULL,
    -- What allowed the start.
    decision_id   text,
    reservation   text,
    intent_leaf   bigint,
    hold_nanos    bigint CHECK (hold_nanos >= 0),
    -- How it ended.
    outcome       text CHECK (outcome IN ('SUCCEEDED', 'FAILED', 'REFUSED', 'CANCELLED', 'IN_DOUBT')),
    repeatable    boolean NOT NULL DEFAULT false,
    result        bytea,
    error         bytea,
    used          bytea,
    cost_nanos    bigint CHECK (cost_nanos >= 0),
    create_time   timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time   timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When its hold was settled or released and its outcome was in the log.
    closed_time   timestamptz,
    PRIMARY KEY (claim, attempt),
    -- Nothing starts without permission, budget and a record.
    CONSTRAINT started_with_all_three CHECK (
        state IN ('CLAIMED', 'REFUSED')
        OR (decision_id IS NOT NULL AND reservation IS NOT NULL AND intent_leaf IS NOT NULL)
    ),
    CONSTRAINT ended_with_outcome CHECK (
        (state IN ('CLAIMED', 'STARTED')) = (outcome IS NULL)
    ),
    CONSTRAINT closed_is_ended CHECK (closed_time IS NULL OR outcome IS NOT NULL)
);

-- What sweepers look for: leases that lapsed, and ends that are not closed.
CREATE INDEX effect_attempts_open ON effect_attempts (lease_expires)
    WHERE state IN ('CLAIMED', 'STARTED');
CREATE INDEX effect_attempts_unclosed ON effect_attempts (update_time)
    WHERE outcome IS NOT NULL AND closed_time IS NULL;

-- The table's owner migrates; the service's role is the owner's name without its suffix.
DO $$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT, UPDATE ON effect_claims, effect_attempts TO %I',
                   regexp_replace(current_user, '_owner$', ''));
END
$$;
