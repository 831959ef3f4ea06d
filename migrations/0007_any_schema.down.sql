DO $$
DECLARE
    ours regprocedure;
BEGIN
    FOR ours IN
        SELECT oid FROM pg_proc WHERE pronamespace = quote_ident(current_schema())::regnamespace AND proname IN (
            'count_user_attributes', 'guard_audit_table', 'make_audit_partitions', 'hash_of_redactions', 'forget_targets_hash',
            'forget_members_hash')
    LOOP
        EXECUTE format('ALTER FUNCTION %s RESET search_path', ours);
    END LOOP;
END $$;
