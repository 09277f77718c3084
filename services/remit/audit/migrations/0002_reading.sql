-- Indexes for reading by user, by rare action, by rare kind and by rare outcome, each in the order of the log.
--
-- Nearly every event is the INTENT or the OUTCOME of a call that ended well: a page of those is found soon
-- without an index of its own, and appending an effect pays for one index more, not for four. Eight bytes of a
-- pseudonym tell users apart as well as all of it does.

CREATE INDEX events_by_subject ON events (substring(subject_pseudonym FOR 8), leaf_index);
CREATE INDEX events_by_action ON events (org, action, leaf_index)
    WHERE action NOT IN ('tools.call', 'models.generate');
CREATE INDEX events_by_kind ON events (org, kind, leaf_index) WHERE kind NOT IN ('INTENT', 'OUTCOME');
CREATE INDEX events_by_outcome ON events (org, outcome, leaf_index) WHERE outcome NOT IN ('', 'SUCCEEDED');
