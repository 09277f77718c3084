-- Service accounts: principals that are no people, whose kind in `principals` is SERVICE_ACCOUNT. A name is that
-- of a person or of a service account for ever.

CREATE TABLE service_accounts (
    name text PRIMARY KEY REFERENCES principals (name),
    display_name text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 100),
    -- Of all its API keys.
    team text REFERENCES principals (name),
    -- Those that its API keys may have.
    roles text[] NOT NULL CHECK (cardinality(roles) > 0)
);

GRANT SELECT, INSERT ON service_accounts TO remit_policy;
