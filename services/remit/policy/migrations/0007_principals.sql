-- Principals that are disabled, service accounts, and what is known of a key since: when it was last
-- used, what it is limited to, which key took its place.

ALTER TABLE principals ADD COLUMN disable_time timestamptz;
ALTER TABLE principals DROP CONSTRAINT principals_kind_check;
ALTER TABLE principals ADD CONSTRAINT principals_kind_check
    CHECK (kind IN ('ORG', 'TEAM', 'USER', 'SERVICE_ACCOUNT'));
CREATE INDEX principals_of_org ON principals (org, name);

ALTER TABLE api_keys ADD COLUMN last_use_time timestamptz;
-- Permissions that the key is limited to; empty: whatever its roles may.
ALTER TABLE api_keys ADD COLUMN scopes text[] NOT NULL DEFAULT '{}';
-- The key that this one was replaced by; it works beside it until it expires.
ALTER TABLE api_keys ADD COLUMN replaced_by text REFERENCES api_keys (key_id);

GRANT UPDATE (disable_time) ON principals TO remit_policy;
GRANT UPDATE (expire_time, last_use_time, replaced_by) ON api_keys TO remit_policy;
