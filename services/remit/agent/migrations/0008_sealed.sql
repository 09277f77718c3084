-- What is about a person is sealed under the key of its subject, so that an erasure reaches it.
--
-- `key_id` names the key; NULL in rows from before, of which nothing is sealed. Sealed bytes begin with a byte of
-- 1, with which nothing began that was stored before. Content of a subject is found by an address that depends on
-- its key; lists of offered tools, which are nobody's, by their SHA-256 as before.

ALTER TABLE runs
    ADD COLUMN key_id bytea CHECK (octet_length(key_id) = 8),
    -- Of a fork of another user's run: the keys that its content is sealed under besides, one a line, id and subject.
    ADD COLUMN other_keys text CHECK (other_keys ~ '^[0-9a-f]{16} orgs/'),
    -- Of its content as it was before it was compressed.
    ADD COLUMN content_bytes integer CHECK (content_bytes >= 0),
    -- What `summary` must not show: result, error, artifacts, confidence, and where the end is told.
    ADD COLUMN sealed bytea CHECK (get_byte(sealed, 0) = 1);

-- Which effect an entry tells of stays in clear beside it, as in the log: so that journals can be compared with
-- the log without a key, after an erasure too.
ALTER TABLE run_events
    ADD COLUMN claim uuid,
    ADD COLUMN resource text,
    ADD COLUMN intent_leaf_index bigint,
    ADD CHECK ((claim IS NULL) = (resource IS NULL)),
    -- Nothing that is encrypted can be compressed: do not try.
    ALTER COLUMN payload SET STORAGE EXTERNAL;

ALTER TABLE conversations
    ADD COLUMN key_id bytea CHECK (octet_length(key_id) = 8),
    ADD COLUMN sealed_name bytea CHECK (get_byte(sealed_name, 0) = 1);

GRANT UPDATE (key_id, sealed) ON runs TO remit_agent;
GRANT UPDATE (sealed_name) ON conversations TO remit_agent;
