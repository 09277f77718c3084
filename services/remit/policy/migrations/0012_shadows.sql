-- Candidates that see decisions beside the policies in force, and what they would have decided
-- otherwise. One at most sees them at a time; the newest few are kept.
CREATE TABLE policy_shadows (
    shadow uuid PRIMARY KEY,
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    files text NOT NULL,
    author text NOT NULL CHECK (length(author) <= 400),
    message text NOT NULL CHECK (length(message) <= 500),
    policy_count integer NOT NULL CHECK (policy_count >= 0),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    expire_time timestamptz NOT NULL,
    end_time timestamptz,
    ended text CHECK (ended IN ('STOPPED', 'EXPIRED', 'PUSHED', 'REPLACED', 'BROKEN')),
    agreed bigint NOT NULL DEFAULT 0,
    newly_denied bigint NOT NULL DEFAULT 0,
    newly_allowed bigint NOT NULL DEFAULT 0,
    newly_asked bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    dropped bigint NOT NULL DEFAULT 0,
    unlisted bigint NOT NULL DEFAULT 0,
    CHECK ((end_time IS NULL) = (ended IS NULL))
);
CREATE UNIQUE INDEX policy_shadows_running ON policy_shadows ((true)) WHERE end_time IS NULL;

-- Decisions alike: the same action, the same first rule that differs, the same answers. The latest of
-- them stands for all; it says nothing about whose it was.
CREATE TABLE policy_shadow_changes (
    shadow uuid NOT NULL REFERENCES policy_shadows (shadow) ON DELETE CASCADE,
    action text NOT NULL,
    policy_id text NOT NULL,
    before text NOT NULL CHECK (before IN ('ALLOW', 'DENY', 'APPROVAL_REQUIRED')),
    after text NOT NULL CHECK (after IN ('ALLOW', 'DENY', 'APPROVAL_REQUIRED')),
    count bigint NOT NULL CHECK (count > 0),
    decision_id text NOT NULL,
    decision_time timestamptz NOT NULL,
    resource text NOT NULL,
    policy_ids_before text[] NOT NULL,
    policy_ids_after text[] NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (shadow, action, policy_id, before, after)
);

GRANT SELECT, INSERT, DELETE, UPDATE (end_time, ended, agreed, newly_denied, newly_allowed, newly_asked,
    failed, dropped, unlisted) ON policy_shadows TO remit_policy;
GRANT SELECT, INSERT, DELETE, UPDATE (count, decision_id, decision_time, resource, policy_ids_before,
    policy_ids_after, reason) ON policy_shadow_changes TO remit_policy;
