-- Conversations: threads of runs, in which each sees what came before.
--
-- Nothing that was said is stored a second time: a run names the run that it follows on, and how many of those
-- before it it sees. A conversation and its runs that were deleted are shown to nobody; the journals stay.

CREATE TABLE conversations (
    conversation      uuid PRIMARY KEY,
    org               text NOT NULL,
    subject           text NOT NULL,
    request_id        text NOT NULL,
    body_digest       bytea NOT NULL CHECK (octet_length(body_digest) = 32),
    display_name      text NOT NULL,
    create_time       timestamptz NOT NULL,
    update_time       timestamptz NOT NULL,
    -- Its newest run. Whoever adds a run holds this row's lock and has seen this one end.
    last_run          uuid REFERENCES runs (run),
    runs              integer NOT NULL DEFAULT 0 CHECK (runs >= 0),
    delete_time       timestamptz,
    delete_request_id text,
    UNIQUE (org, subject, request_id),
    CHECK ((delete_time IS NULL) = (delete_request_id IS NULL))
);

CREATE INDEX conversations_of_org ON conversations (org, coalesce(last_run, conversation) DESC)
    WHERE delete_time IS NULL;
CREATE INDEX conversations_of_subject
    ON conversations (org, subject, coalesce(last_run, conversation) DESC)
    WHERE delete_time IS NULL;

ALTER TABLE runs
    ADD COLUMN conversation uuid REFERENCES conversations (conversation),
    -- The newest run before it in its conversation that succeeded.
    ADD COLUMN previous_run uuid REFERENCES runs (run),
    -- How many runs it sees along that line.
    ADD COLUMN history_runs smallint NOT NULL DEFAULT 0 CHECK (history_runs >= 0),
    ADD COLUMN delete_time  timestamptz;

CREATE INDEX runs_of_conversation ON runs (conversation, run DESC) WHERE conversation IS NOT NULL;

GRANT SELECT, INSERT ON conversations TO remit_agent;
GRANT UPDATE (display_name, update_time, last_run, runs, delete_time, delete_request_id)
    ON conversations TO remit_agent;
GRANT UPDATE (delete_time) ON runs TO remit_agent;
