-- Each key has an id, which stands in every payload that it encrypted: a payload whose key is not the
-- subject's current one was erased, it is not damaged. The keys that were there before are key zero.
--
-- The eraser may delete a key by the subject and the id, and read nothing else.

ALTER TABLE subject_keys
    ADD COLUMN key_id bytea NOT NULL DEFAULT '\x0000000000000000' CHECK (octet_length(key_id) = 8);
ALTER TABLE subject_keys ALTER COLUMN key_id DROP DEFAULT;

GRANT SELECT (subject_pseudonym, key_id), DELETE ON subject_keys TO remit_audit_keys_eraser;
