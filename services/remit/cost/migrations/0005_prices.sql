-- Prices that orgs set for themselves. Append-only: each row holds from `start_time` on until the next one
-- of its item. A later row for the same time takes a row's place, and so does a later row without a
-- price, a deletion, from that time or before.
CREATE TABLE org_prices (
    org text NOT NULL REFERENCES ledgers (org),
    item text COLLATE "C" NOT NULL CHECK (length(item) <= 200),
    sequence bigint NOT NULL CHECK (sequence >= 1),
    start_time timestamptz NOT NULL,
    price_version text REFERENCES prices (version),
    create_time timestamptz NOT NULL,
    subject text NOT NULL CHECK (length(subject) <= 400),
    PRIMARY KEY (org, item, sequence)
);
CREATE UNIQUE INDEX org_prices_in_order ON org_prices (org, sequence);
CREATE INDEX org_prices_by_time ON org_prices (org, item, start_time, sequence);

-- The number of an org's price changes: the last sequence. A batch reads it with the ledger that it locks,
-- and so knows whether the prices that a replica remembers are still all.
ALTER TABLE ledgers ADD COLUMN price_epoch bigint NOT NULL DEFAULT 0;

ALTER TABLE reservations DROP CONSTRAINT reservations_price_source_check;
ALTER TABLE reservations ADD CONSTRAINT reservations_price_source_check
    CHECK (price_source IN ('shipped', 'file', 'genai-prices', 'unlisted', 'org'));

GRANT SELECT, INSERT ON org_prices TO remit_cost;
GRANT UPDATE (price_epoch) ON ledgers TO remit_cost;
