-- What people are asked to approve: one exact action of one claim, bound to a digest. Every change of
-- a row is made under one advisory lock and takes the next sequence, so that whoever follows the
-- sequence misses none.

CREATE TABLE approvals (
    approval uuid PRIMARY KEY,
    sequence bigint NOT NULL UNIQUE CHECK (sequence > 0),
    state text NOT NULL
        CHECK (state IN ('PENDING', 'APPROVED', 'DENIED', 'EXPIRED', 'USED', 'WITHDRAWN')),
    org text NOT NULL,
    claim uuid NOT NULL,
    -- Over the exact action and the version of the policies; `action_digest` over the action alone.
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    action_digest bytea NOT NULL CHECK (octet_length(action_digest) = 32),
    requester text NOT NULL,
    team text NOT NULL,
    agent text NOT NULL,
    run text NOT NULL,
    action text NOT NULL,
    resource text NOT NULL,
    permission_class smallint NOT NULL,
    definition_digest bytea NOT NULL,
    arguments_digest bytea NOT NULL,
    cost_bound_nanos bigint NOT NULL CHECK (cost_bound_nanos >= 0),
    policy_ids text[] NOT NULL,
    policy_reason text NOT NULL,
    policy_epoch bigint NOT NULL,
    -- JSON: who may approve and how many must. `approvers` is everybody whom it names.
    rules text NOT NULL,
    approvers text[] NOT NULL,
    -- google.protobuf.Struct; forgotten with the state in which nobody needs it any more.
    arguments bytea,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    expire_time timestamptz NOT NULL,
    end_time timestamptz,
    used_by_attempt integer CHECK (used_by_attempt > 0),
    UNIQUE (claim, digest),
    CHECK ((state = 'USED') = (used_by_attempt IS NOT NULL)),
    CHECK ((state IN ('PENDING', 'APPROVED')) = (end_time IS NULL)),
    CHECK (arguments IS NULL OR state IN ('PENDING', 'APPROVED'))
);
CREATE INDEX approvals_of_org ON approvals (org, approval DESC);
CREATE INDEX approvals_open ON approvals (expire_time) WHERE state IN ('PENDING', 'APPROVED');
CREATE INDEX approvals_of_run ON approvals (run) WHERE state IN ('PENDING', 'APPROVED');

-- What people said. A voice counts once the admin request that brought it is in the audit log.
CREATE TABLE approval_votes (
    approval uuid NOT NULL REFERENCES approvals (approval),
    subject text NOT NULL,
    verdict text NOT NULL CHECK (verdict IN ('APPROVE', 'DENY')),
    reason text NOT NULL CHECK (length(reason) <= 1000),
    -- What the person was when they said so, in the words of the rules.
    words text[] NOT NULL,
    request_id text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (approval, subject)
);

GRANT SELECT, INSERT, UPDATE (state, sequence, arguments, end_time, used_by_attempt)
    ON approvals TO remit_policy;
GRANT SELECT, INSERT ON approval_votes TO remit_policy;
