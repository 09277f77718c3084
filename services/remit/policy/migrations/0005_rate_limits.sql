-- How often a principal may start runs and how many it may have at once, where that is not what settings say.

CREATE TABLE rate_limits (
    -- Full name of a user, an API key or an org.
    principal text PRIMARY KEY CHECK (length(principal) <= 400),
    org text NOT NULL CHECK (principal = org OR starts_with(principal, org || '/')),
    -- 0: as often as it likes.
    max_runs integer NOT NULL CHECK (max_runs BETWEEN 0 AND 10000),
    window_s integer NOT NULL CHECK (window_s BETWEEN 1 AND 86400),
    -- Runs at once that have not ended; 0: any number.
    max_unfinished_runs integer NOT NULL CHECK (max_unfinished_runs BETWEEN 0 AND 10000),
    create_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX rate_limits_of_org ON rate_limits (org, principal);

GRANT SELECT, INSERT, UPDATE, DELETE ON rate_limits TO remit_policy;
