-- Versions of the policies, grants, and the one counter of both.
--
-- The epoch grows with every accepted change of policies or grants; every decision reads the highest
-- one. A version of the policies is named by the epoch that it began.
CREATE TABLE policy_epochs (
    epoch bigint PRIMARY KEY CHECK (epoch > 0),
    cause text NOT NULL CHECK (cause IN ('POLICIES', 'GRANT')),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO policy_epochs (epoch, cause, create_time)
SELECT epoch, 'POLICIES', create_time FROM policy_sets;

-- `origin` says how a version came about, `source_version` whose files a rollback took.
ALTER TABLE policy_sets
    ADD FOREIGN KEY (epoch) REFERENCES policy_epochs (epoch),
    ADD COLUMN origin text NOT NULL DEFAULT 'FILES'
        CHECK (origin IN ('FILES', 'PUSH', 'ROLLBACK', 'UPGRADE')),
    ADD COLUMN author text NOT NULL DEFAULT '' CHECK (length(author) <= 400),
    ADD COLUMN message text NOT NULL DEFAULT '' CHECK (length(message) <= 500),
    ADD COLUMN source_version bigint REFERENCES policy_sets (epoch),
    ADD COLUMN policy_count integer NOT NULL DEFAULT 0,
    ADD CHECK ((origin = 'ROLLBACK') = (source_version IS NOT NULL));

-- A grant permits the calls of one tool, or of all tools up to a class, to one principal of an org:
-- a user, a team, or whoever of the org runs an agent. `policy` is its Cedar text, which decides.
CREATE TABLE tool_grants (
    grant_id uuid PRIMARY KEY,
    org text NOT NULL CHECK (length(org) <= 400),
    principal text NOT NULL CHECK (length(principal) <= 400),
    tool text NOT NULL DEFAULT '' CHECK (length(tool) <= 400),
    permission_class smallint NOT NULL DEFAULT 0 CHECK (permission_class BETWEEN 0 AND 4),
    policy text NOT NULL,
    author text NOT NULL CHECK (length(author) <= 400),
    epoch bigint NOT NULL REFERENCES policy_epochs (epoch),
    create_time timestamptz NOT NULL DEFAULT now(),
    expire_time timestamptz,
    revoke_time timestamptz,
    CHECK ((tool = '') = (permission_class > 0))
);
CREATE INDEX tool_grants_of_org ON tool_grants (org, create_time DESC, grant_id DESC);
CREATE INDEX tool_grants_in_force ON tool_grants (expire_time) WHERE revoke_time IS NULL;

GRANT SELECT, INSERT ON policy_epochs TO remit_policy;
GRANT SELECT, INSERT, UPDATE (revoke_time) ON tool_grants TO remit_policy;
