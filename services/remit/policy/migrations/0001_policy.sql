-- What policy owns: principals, their API keys, the policies and their epochs, the keys that sign
-- remits, and what each run was registered with. Runs as remit_policy_owner; the service's role may
-- do what the GRANTs at the end say and nothing else.

-- Orgs, teams and users by full name. An org is its own `org`.
CREATE TABLE principals (
    name text PRIMARY KEY CHECK (length(name) <= 400),
    kind text NOT NULL CHECK (kind IN ('ORG', 'TEAM', 'USER')),
    org text NOT NULL REFERENCES principals (name),
    create_time timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'ORG') = (name = org))
);

-- API keys. The secret is nowhere: `digest` is HMAC-SHA256 under a pepper that lives in a file, and
-- `pepper_id` names that pepper so that a wrong file is noticed.
CREATE TABLE api_keys (
    key_id text PRIMARY KEY CHECK (length(key_id) = 16),
    org text NOT NULL REFERENCES principals (name),
    subject text NOT NULL REFERENCES principals (name),
    team text REFERENCES principals (name),
    display_name text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 100),
    roles text[] NOT NULL CHECK (cardinality(roles) > 0),
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    pepper_id text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    expire_time timestamptz,
    revoke_time timestamptz
);
CREATE INDEX api_keys_of_org ON api_keys (org, create_time DESC, key_id DESC);

-- Every admin change by who asked and the id they gave it: it dedupes repetitions, and it is the
-- outbox from which the change reaches the audit log (`record_time` is null until it is there).
CREATE TABLE admin_requests (
    subject text NOT NULL CHECK (length(subject) <= 400),
    method text NOT NULL,
    request_id text NOT NULL CHECK (length(request_id) BETWEEN 1 AND 64),
    org text NOT NULL,
    body_digest bytea NOT NULL CHECK (octet_length(body_digest) = 32),
    action text NOT NULL,
    resource text NOT NULL,
    detail text NOT NULL,
    trace_id text NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    record_time timestamptz,
    PRIMARY KEY (subject, method, request_id)
);
CREATE INDEX admin_requests_unrecorded ON admin_requests (create_time) WHERE record_time IS NULL;

-- Ed25519 keys that sign remits. The private key is sealed (AES-256-GCM) under a key that lives in a
-- file; `seal_id` names it.
CREATE TABLE signing_keys (
    key_id text PRIMARY KEY,
    public_key bytea NOT NULL CHECK (octet_length(public_key) = 32),
    sealed_private_key bytea NOT NULL,
    seal_id text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Every policy set that was ever in force; the highest epoch is in force now. `files` is text by
-- file name, as JSON.
CREATE TABLE policy_sets (
    epoch bigint PRIMARY KEY CHECK (epoch > 0),
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    files text NOT NULL,
    schema text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);

-- The least fencing token that a run's remits must carry. Apart from the registration, because a run
-- can be fenced before its first remit was asked for.
CREATE TABLE run_fences (
    run text PRIMARY KEY CHECK (length(run) <= 64),
    min_fencing_token bigint NOT NULL CHECK (min_fencing_token > 0),
    create_time timestamptz NOT NULL DEFAULT now()
);

-- On whose behalf a run acts and with what, fixed by the first remit. Renewals and adoption after a
-- crash need no credential of the client because this is here.
CREATE TABLE run_registrations (
    run text PRIMARY KEY REFERENCES run_fences (run),
    subject text NOT NULL,
    team text NOT NULL,
    roles text[] NOT NULL,
    agent text NOT NULL,
    tools text[] NOT NULL,
    models text[] NOT NULL,
    account text NOT NULL,
    max_cost_nanos bigint CHECK (max_cost_nanos >= 0),
    create_time timestamptz NOT NULL DEFAULT now()
);

GRANT SELECT, INSERT ON principals, policy_sets, signing_keys, run_registrations TO remit_policy;
GRANT SELECT, INSERT, UPDATE (revoke_time) ON api_keys TO remit_policy;
GRANT SELECT, INSERT, UPDATE (record_time) ON admin_requests TO remit_policy;
GRANT SELECT, INSERT, UPDATE (min_fencing_token) ON run_fences TO remit_policy;
