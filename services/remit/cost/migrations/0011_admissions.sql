-- After every batch no account on whose path a hold was admitted is above a HARD limit that is set,
-- whatever the batch's writer believes. Limits that stand in no table (the default of settings, and those
-- that a run carries in its remit) and those of each run are proved by the service alone.
CREATE FUNCTION check_admissions() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    fault text;
BEGIN
    SELECT format('%s was admitted over its limit of %s', a.account, g.limit_nanos) INTO fault
    FROM (
        SELECT DISTINCT array_to_string(l.parts[1:n], '/') AS account, l.day
        FROM (
            SELECT DISTINCT string_to_array(debit_account, '/') AS parts, day
            FROM moved WHERE kind = 1
        ) l, generate_series(2, cardinality(l.parts), 2) AS n
    ) a
    CROSS JOIN LATERAL (
        SELECT * FROM budgets f
            WHERE f.account = a.account AND f.enforcement = 1 AND f.period IN (1, 2, 3) OFFSET 0
    ) g
    CROSS JOIN LATERAL (
        SELECT * FROM balances f
        WHERE f.account = a.account AND f.period = g.period AND f.start = CASE g.period
            WHEN 1 THEN date '1970-01-01' WHEN 2 THEN a.day
            ELSE date_trunc('month', a.day)::date
        END OFFSET 0
    ) b
    WHERE b.pending_nanos + b.posted_nanos > g.limit_nanos
    LIMIT 1;
    IF fault IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = fault;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER admissions_fit AFTER INSERT ON transfers
    REFERENCING NEW TABLE AS moved FOR EACH STATEMENT EXECUTE FUNCTION check_admissions();
