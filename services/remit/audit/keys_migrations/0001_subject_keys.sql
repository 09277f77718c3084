-- The keys of subjects, wrapped under the master key, in a database of their own so that no backup of
-- the log holds a key. Deleting a row erases the subject: the service role cannot, and the role that
-- can has no other right.

CREATE TABLE subject_keys (
    subject_pseudonym bytea PRIMARY KEY CHECK (octet_length(subject_pseudonym) = 32),
    master_key_id text COLLATE "C" NOT NULL,
    wrapped_key bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);

GRANT INSERT, SELECT ON subject_keys TO remit_audit_keys;
