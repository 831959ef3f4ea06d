-- The hash of each set that is too large for an audit document: the targets of a flag and the members of a segment. The sum of a hash of
-- each element, modulo 2^2048; NULL: unknown, to be computed from the rows at the next change. See docs/decisions.
ALTER TABLE feature_flags
    ADD COLUMN targets_count bigint,
    ADD COLUMN targets_sum bytea,
    ADD CONSTRAINT feature_flags_targets_hash_is_whole
        CHECK ((targets_count IS NULL) = (targets_sum IS NULL) AND octet_length(targets_sum) = 256);
ALTER TABLE segments
    ADD COLUMN members_count bigint,
    ADD COLUMN members_sum bytea,
    ADD CONSTRAINT segments_members_hash_is_whole
        CHECK ((members_count IS NULL) = (members_sum IS NULL) AND octet_length(members_sum) = 256);

-- Whoever changes a set without counting it, such as the release before this one, makes its hash unknown. Row triggers, because the WHEN
-- is all that they cost those who count: a statement trigger would keep a copy of a million rows.
CREATE FUNCTION forget_targets_hash() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE feature_flags SET targets_count = NULL, targets_sum = NULL
    WHERE flag_id IN (OLD.flag_id, NEW.flag_id) AND targets_sum IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER targeted_users_uncounted AFTER INSERT OR UPDATE OR DELETE ON targeted_users FOR EACH ROW
    WHEN (current_setting('gatekeeper.counts_sets', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION forget_targets_hash();

CREATE FUNCTION forget_members_hash() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE segments SET members_count = NULL, members_sum = NULL
    WHERE segment_id IN (OLD.segment_id, NEW.segment_id) AND members_sum IS NOT NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER segment_members_uncounted AFTER INSERT OR UPDATE OR DELETE ON segment_members FOR EACH ROW
    WHEN (current_setting('gatekeeper.counts_sets', true) IS DISTINCT FROM 'on') EXECUTE FUNCTION forget_members_hash();
