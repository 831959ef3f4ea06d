-- Functions find their tables, whatever the search path of the session is, in the schema that the installation is in. Which one that is
-- does not matter: before, one function looked in "public" (decision 0030).
DO $$
DECLARE
    ours regprocedure;
BEGIN
    FOR ours IN
        SELECT oid FROM pg_proc WHERE pronamespace = quote_ident(current_schema())::regnamespace AND proname IN (
            'count_user_attributes', 'guard_audit_table', 'make_audit_partitions', 'ensure_audit_partitions', 'redact_audit_documents',
            'hash_of_redactions', 'require_erasure', 'forget_targets_hash', 'forget_members_hash')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', ours, current_schema());
    END LOOP;
END $$;
