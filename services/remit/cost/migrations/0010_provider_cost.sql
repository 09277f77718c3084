-- What providers charge has an account of its own, and the database itself refuses a batch that breaks
-- the books, whatever its writer believes.

-- Kind 5 COST: from the operator's revenue to what providers cost, as much as the bill was. An effect in
-- doubt has none: nobody knows its bill.
ALTER TABLE transfers
    DROP CONSTRAINT transfers_kind_check,
    DROP CONSTRAINT transfers_credit_account_check,
    ADD CONSTRAINT transfers_kind_check CHECK (kind IN (1, 2, 3, 4, 5)),
    ADD CONSTRAINT transfers_accounts_check CHECK (
        CASE WHEN kind = 5
            THEN debit_account LIKE 'operator/orgs/%/revenue'
                AND credit_account = regexp_replace(debit_account, 'revenue$', 'provider-cost')
            ELSE credit_account LIKE 'operator/orgs/%/revenue'
        END
    );

-- The bills of what was settled before.
WITH bills AS (
    SELECT claim, attempt, org, day, close_time, transfers + 1 AS sequence,
        posted_nanos + overrun_nanos AS nanos
    FROM reservations WHERE used_calls IS NOT NULL AND posted_nanos + overrun_nanos > 0
), counted AS (
    UPDATE reservations r SET transfers = b.sequence
    FROM bills b WHERE r.claim = b.claim AND r.attempt = b.attempt
), sums AS (
    SELECT org, period, sum(nanos) AS nanos, CASE period
        WHEN 1 THEN date '1970-01-01' WHEN 2 THEN day ELSE date_trunc('month', day)::date
    END AS start
    FROM bills, unnest(ARRAY[1, 2, 3]) AS period GROUP BY 1, 2, 4
), from_revenue AS (
    UPDATE balances b SET posted_nanos = b.posted_nanos - s.nanos FROM sums s
    WHERE b.account = 'operator/' || s.org || '/revenue'
        AND b.period = s.period AND b.start = s.start
), to_cost AS (
    INSERT INTO balances (account, period, start, pending_nanos, posted_nanos)
    SELECT 'operator/' || org || '/provider-cost', period, start, 0, nanos FROM sums
)
INSERT INTO transfers (
    claim, attempt, sequence, kind, debit_account, credit_account, amount_nanos, day, post_time
)
SELECT claim, attempt, sequence, 5, 'operator/' || org || '/revenue',
    'operator/' || org || '/provider-cost', nanos, day, close_time
FROM bills;

-- A hold is resolved once: what is closed never changes.
CREATE FUNCTION refuse_to_reopen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% attempt % is closed and may not change', OLD.claim, OLD.attempt
        USING ERRCODE = 'check_violation';
END
$$;
CREATE TRIGGER closed_for_good BEFORE UPDATE ON reservations
    FOR EACH ROW WHEN (OLD.state <> 1) EXECUTE FUNCTION refuse_to_reopen();

-- After every batch that moves money, debits equal credits: of each org and day in it, in each period.
CREATE FUNCTION check_books() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fault text;
BEGIN
    SELECT format('debits and credits of %s differ in the period %s', d.org, p.period) INTO fault
    FROM (
        SELECT DISTINCT 'orgs/' || split_part(credit_account, '/', 3) AS org, day FROM moved
    ) d
    CROSS JOIN LATERAL (VALUES
        (1::smallint, date '1970-01-01'), (2::smallint, d.day),
        (3::smallint, date_trunc('month', d.day)::date)
    ) p (period, start)
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(b.pending_nanos * s.sign), 0) AS pending,
            coalesce(sum(b.posted_nanos * s.sign), 0) AS posted
        FROM (VALUES
            (d.org, 1), ('operator/' || d.org || '/overrun', 1),
            ('operator/' || d.org || '/revenue', -1),
            ('operator/' || d.org || '/provider-cost', -1)
        ) s (account, sign)
        CROSS JOIN LATERAL (
            SELECT * FROM balances f
            WHERE f.account = s.account AND f.period = p.period AND f.start = p.start OFFSET 0
        ) b
    ) total
    WHERE total.pending <> 0 OR total.posted <> 0
    LIMIT 1;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = fault;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER books_add_up AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION check_books();
