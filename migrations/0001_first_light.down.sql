DROP TABLE idempotency_keys, client_keys, refresh_tokens, admin_user, auth_events, audit_archives, audit_documents, audit_log, change_log,
    targeted_users, flag_segments, feature_flags, segment_members, segments, user_attribute_counts, users, subjects, revision_head;
DROP FUNCTION ensure_audit_partitions(), make_audit_partitions(integer, bigint), guard_audit_table(regclass, text), refuse_audit_change(), count_user_attributes();
