-- The entries that tell of erasures are looked through at every start: a database of keys that was
-- restored from a backup must not bring back a key that was destroyed.

CREATE INDEX events_of_erasures ON events (leaf_index) WHERE kind = 'ADMIN' AND action = 'audit.erase';
