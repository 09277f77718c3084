-- What an attempt leaves (its result, its error, the digest of a result that is not kept) is sealed under a key
-- that audit derives for this service from its subject's, so that it cannot be read once the subject is erased
-- (ADR 36). What is older stays in clear, and is read as it was.

ALTER TABLE effect_attempts
    ADD COLUMN is_sealed boolean NOT NULL DEFAULT false,
    ADD COLUMN sealed_digest bytea,
    ADD CONSTRAINT sealed_or_clear CHECK (CASE WHEN is_sealed THEN result_digest IS NULL ELSE sealed_digest IS NULL END);
