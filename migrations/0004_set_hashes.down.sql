DROP TRIGGER segment_members_uncounted ON segment_members;
DROP TRIGGER targeted_users_uncounted ON targeted_users;
DROP FUNCTION forget_members_hash();
DROP FUNCTION forget_targets_hash();
ALTER TABLE segments DROP COLUMN members_count, DROP COLUMN members_sum;
ALTER TABLE feature_flags DROP COLUMN targets_count, DROP COLUMN targets_sum;
