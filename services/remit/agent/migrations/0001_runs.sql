-- Runs, their journals, and what both refer to.
--
-- The journal is append-only: the service's role may insert and read events, never change or delete them.
-- Content is stored once by its digest and shared by all rows that refer to it. A run's row holds what is
-- queried and the lease; `summary` is the fold of the journal, kept so that reading a run reads one row.

CREATE TABLE agent_definitions (
    version     text PRIMARY KEY CHECK (version ~ '^[0-9a-f]{64}$'),
    agent       text NOT NULL,
    definition  bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE content (
    digest bytea PRIMARY KEY CHECK (octet_length(digest) = 32),
    bytes  bytea NOT NULL
);

CREATE TABLE runs (
    run               uuid PRIMARY KEY,
    org               text NOT NULL,
    subject           text NOT NULL,
    agent             text NOT NULL,
    agent_version     text NOT NULL REFERENCES agent_definitions (version),
    request_id        text NOT NULL,
    body_digest       bytea NOT NULL CHECK (octet_length(body_digest) = 32),
    state             smallint NOT NULL CHECK (state BETWEEN 1 AND 5),
    create_time       timestamptz NOT NULL,
    deadline_time     timestamptz NOT NULL,
    summary           bytea NOT NULL,
    content_digest    bytea NOT NULL REFERENCES content (digest) DEFERRABLE INITIALLY DEFERRED,
    last_sequence     bigint NOT NULL CHECK (last_sequence >= 1),
    -- The tools offered to the run's model, pinned when it is first asked.
    offer_digest      bytea REFERENCES content (digest) DEFERRABLE INITIALLY DEFERRED,
    cancel_request_id text,
    -- The lease, by this database's clock. Whoever writes must hold the newest token.
    fencing_token     bigint NOT NULL CHECK (fencing_token >= 0),
    owner             text,
    lease_expire_time timestamptz,
    UNIQUE (org, subject, request_id),
    CHECK ((owner IS NULL) = (lease_expire_time IS NULL)),
    CHECK (state < 3 OR owner IS NULL)
);

-- Few rows are unfinished, so claiming and counting them never reads the history.
CREATE INDEX runs_unfinished ON runs (org, run) WHERE state < 3;
CREATE INDEX runs_of_org ON runs (org, run DESC);
CREATE INDEX runs_of_subject ON runs (org, subject, run DESC);

CREATE TABLE run_events (
    run            uuid NOT NULL REFERENCES runs (run),
    sequence       bigint NOT NULL CHECK (sequence >= 1),
    event_time     timestamptz NOT NULL,
    percent        smallint NOT NULL CHECK (percent BETWEEN 0 AND 100),
    payload        bytea NOT NULL,
    -- The large part of the event, if it has one.
    content_digest bytea REFERENCES content (digest) DEFERRABLE INITIALLY DEFERRED,
    -- SHA-256 over all of the above, so that a row changed by hand is detected and named.
    digest         bytea NOT NULL CHECK (octet_length(digest) = 32),
    PRIMARY KEY (run, sequence)
);

GRANT SELECT, INSERT ON agent_definitions, content, run_events TO remit_agent;
GRANT SELECT, INSERT ON runs TO remit_agent;
GRANT UPDATE (
    state, summary, last_sequence, offer_digest, cancel_request_id,
    fencing_token, owner, lease_expire_time
) ON runs TO remit_agent;
