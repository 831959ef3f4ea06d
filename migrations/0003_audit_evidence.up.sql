-- What an entry of the audit log proves beyond its own fields: which documents an erasure rewrote, and whom it met first. `evidence_hash`
-- is the SHA-256 of those rows as lines of text; an entry without any has none, and the format of all entries before.
ALTER TABLE audit_log ADD COLUMN evidence_hash bytea;
ALTER TABLE audit_log ADD CONSTRAINT audit_log_evidence_is_sha256 CHECK (octet_length(evidence_hash) = 32) NOT VALID;

-- Each document that an erasure rewrote, with its hash before and after. `erasure_seq` is the entry of the erasure.
CREATE TABLE audit_redactions (
    erasure_seq bigint      NOT NULL,
    seq         bigint      NOT NULL,
    old_hash    bytea       NOT NULL,
    new_hash    bytea       NOT NULL,
    CONSTRAINT audit_redactions_pkey PRIMARY KEY (erasure_seq, seq),
    CONSTRAINT audit_redactions_hashes_are_sha256 CHECK (octet_length(old_hash) = 32 AND octet_length(new_hash) = 32)
);
CREATE INDEX audit_redactions_seq_idx ON audit_redactions (seq, erasure_seq);

-- Binds the subject id of a person to their user id: SHA-256 of the salt in `subjects` and the id. `seq` is the entry that met them first.
-- Erasure deletes the salt with the subject, and the commitment no longer says anything. Subjects from before have neither.
CREATE TABLE subject_commitments (
    seq         bigint      NOT NULL,
    subject_id  uuid        NOT NULL,
    commitment  bytea       NOT NULL,
    CONSTRAINT subject_commitments_pkey PRIMARY KEY (seq, subject_id),
    CONSTRAINT subject_commitments_are_sha256 CHECK (octet_length(commitment) = 32)
);
ALTER TABLE subjects ADD COLUMN salt bytea;

-- Whom an event concerns, such as the export of what is held about a person: by the random id that an erasure leaves without a meaning.
ALTER TABLE auth_events ADD COLUMN subject_id uuid;

SELECT guard_audit_table('audit_redactions', 'UPDATE OR DELETE');
SELECT guard_audit_table('subject_commitments', 'UPDATE OR DELETE');

-- Replaces documents, each with its new salt, and records the old and the new hash for an erasure: the entry that the transaction is
-- about to write. Returns the hash of these records. The only way for the serving role to change a document, and it cannot be used
-- without leaving that entry: the trigger below looks for it at the commit.
CREATE FUNCTION redact_audit_documents(erasure bigint, seqs bigint[], salts bytea[], documents bytea[]) RETURNS bytea
    LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF erasure IS DISTINCT FROM (SELECT audit_seq + 1 FROM revision_head) THEN
        RAISE EXCEPTION 'documents of the audit log are rewritten only by the erasure that is being recorded'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO audit_redactions (erasure_seq, seq, old_hash, new_hash)
    SELECT erasure, d.seq, sha256(d.salt || d.document), sha256(made.salt || made.document)
    FROM unnest(seqs, salts, documents) AS made (seq, salt, document) JOIN audit_documents d USING (seq);
    -- Not an UPDATE, which is refused to everybody.
    DELETE FROM audit_documents WHERE seq = ANY(seqs);
    INSERT INTO audit_documents (seq, salt, document)
    SELECT made.seq, made.salt, made.document FROM unnest(seqs, salts, documents) AS made (seq, salt, document)
    WHERE EXISTS (SELECT FROM audit_redactions r WHERE r.erasure_seq = erasure AND r.seq = made.seq);
    RETURN hash_of_redactions(erasure);
END $$;

CREATE FUNCTION hash_of_redactions(erasure bigint) RETURNS bytea LANGUAGE sql STABLE AS $$
    SELECT sha256(convert_to(string_agg(
        'redaction ' || seq || ' ' || encode(old_hash, 'hex') || ' ' || encode(new_hash, 'hex') || E'\n', '' ORDER BY seq), 'UTF8'))
    FROM audit_redactions WHERE erasure_seq = erasure
$$;

-- At the commit. One row of an erasure stands for all of them.
CREATE FUNCTION require_erasure() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NEW.seq = (SELECT min(seq) FROM audit_redactions WHERE erasure_seq = NEW.erasure_seq) AND NOT EXISTS (
        SELECT FROM audit_log
        WHERE seq = NEW.erasure_seq AND resource_type = 'subject' AND evidence_hash = hash_of_redactions(NEW.erasure_seq)
    ) THEN
        RAISE EXCEPTION 'entry % of the audit log is not the erasure that rewrote documents', NEW.erasure_seq
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER audit_redactions_have_an_erasure AFTER INSERT ON audit_redactions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION require_erasure();
ALTER TABLE audit_redactions ENABLE ALWAYS TRIGGER audit_redactions_have_an_erasure;

-- They act with the owner's rights, so they must not find anybody else's tables or functions first.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION redact_audit_documents(bigint, bigint[], bytea[], bytea[]) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION require_erasure() SET search_path = %I, pg_temp', current_schema());
END $$;
REVOKE ALL ON FUNCTION redact_audit_documents(bigint, bigint[], bytea[], bytea[]), hash_of_redactions(bigint), require_erasure() FROM PUBLIC;
