-- Entries with evidence no longer verify after this, because what they hash is gone.
DROP TABLE audit_redactions, subject_commitments;
DROP FUNCTION redact_audit_documents(bigint, bigint[], bytea[], bytea[]), hash_of_redactions(bigint), require_erasure();
ALTER TABLE auth_events DROP COLUMN subject_id;
ALTER TABLE subjects DROP COLUMN salt;
ALTER TABLE audit_log DROP COLUMN evidence_hash;
