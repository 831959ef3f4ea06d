-- The whole data model. Names of constraints are part of it: gatekeeper_grpc/store/errors.py turns them into domain errors.
-- Text that identifies is COLLATE "C": keys are case-sensitive and sort the same on every machine.

-- One row. Its lock is the order of all mutations; its revision is the revision of everything.
CREATE TABLE revision_head (
    singleton   boolean     NOT NULL DEFAULT true,
    revision    bigint      NOT NULL,
    audit_seq   bigint      NOT NULL,
    audit_hash  bytea       NOT NULL,
    CONSTRAINT revision_head_pkey PRIMARY KEY (singleton),
    CONSTRAINT revision_head_is_one_row CHECK (singleton),
    CONSTRAINT revision_head_hash_is_sha256 CHECK (octet_length(audit_hash) = 32)
);
INSERT INTO revision_head (revision, audit_seq, audit_hash) VALUES (0, 0, decode(repeat('00', 32), 'hex'));

-- People. The only place that maps a user id to the random id by which everything else, the audit log included, knows a person.
CREATE TABLE subjects (
    subject_id  uuid        NOT NULL DEFAULT gen_random_uuid(),
    user_id     text        COLLATE "C" NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT subjects_pkey PRIMARY KEY (subject_id),
    CONSTRAINT subjects_user_id_key UNIQUE (user_id),
    CONSTRAINT subjects_user_id_length CHECK (octet_length(user_id) BETWEEN 1 AND 256)
);

CREATE TABLE users (
    subject_id  uuid        NOT NULL,
    attributes  jsonb       NOT NULL DEFAULT '{}',
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    revision    bigint      NOT NULL,
    CONSTRAINT users_pkey PRIMARY KEY (subject_id),
    CONSTRAINT users_subject_fkey FOREIGN KEY (subject_id) REFERENCES subjects ON DELETE CASCADE,
    CONSTRAINT users_attributes_are_an_object CHECK (jsonb_typeof(attributes) = 'object')
);
CREATE INDEX users_attributes_idx ON users USING gin (attributes jsonb_path_ops);

-- How many known users have a top-level attribute: the cap on attributes in the snapshot is checked without counting a million rows.
CREATE TABLE user_attribute_counts (
    name        text        COLLATE "C" NOT NULL,
    users       bigint      NOT NULL,
    CONSTRAINT user_attribute_counts_pkey PRIMARY KEY (name),
    CONSTRAINT user_attribute_counts_not_negative CHECK (users >= 0)
);

-- Triggers keep the counts in step, because users also go by cascade, when a person is erased. One per statement: a row each for a
-- million users would update the same counts a million times.
CREATE FUNCTION count_user_attributes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO user_attribute_counts (name, users)
        SELECT name, count(*) FROM present, jsonb_object_keys(present.attributes) AS name GROUP BY name
        ON CONFLICT ON CONSTRAINT user_attribute_counts_pkey
        DO UPDATE SET users = user_attribute_counts.users + excluded.users;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        UPDATE user_attribute_counts counted SET users = counted.users - gone.users
        FROM (SELECT name, count(*) AS users FROM past, jsonb_object_keys(past.attributes) AS name GROUP BY name) gone
        WHERE counted.name = gone.name;
        DELETE FROM user_attribute_counts
        WHERE users = 0 AND name IN (SELECT jsonb_object_keys(past.attributes) FROM past);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER users_count_created AFTER INSERT ON users
    REFERENCING NEW TABLE AS present FOR EACH STATEMENT EXECUTE FUNCTION count_user_attributes();
CREATE TRIGGER users_count_updated AFTER UPDATE ON users
    REFERENCING OLD TABLE AS past NEW TABLE AS present FOR EACH STATEMENT EXECUTE FUNCTION count_user_attributes();
CREATE TRIGGER users_count_deleted AFTER DELETE ON users
    REFERENCING OLD TABLE AS past FOR EACH STATEMENT EXECUTE FUNCTION count_user_attributes();

-- Segments.
CREATE TABLE segments (
    segment_id  bigint      GENERATED ALWAYS AS IDENTITY,
    environment text        COLLATE "C" NOT NULL DEFAULT '',
    key         text        COLLATE "C" NOT NULL,
    description text        NOT NULL DEFAULT '',
    match       text        NOT NULL,
    conditions  jsonb       NOT NULL DEFAULT '[]',
    -- What the caps of the contract are counted on: the attributes that the conditions look at, and how many values of CONTAINS,
    -- STARTS_WITH and ENDS_WITH they have.
    attribute_names text[]  NOT NULL DEFAULT '{}',
    scanned_values integer  NOT NULL DEFAULT 0,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    revision    bigint      NOT NULL,
    CONSTRAINT segments_pkey PRIMARY KEY (segment_id),
    CONSTRAINT segments_key_key UNIQUE (environment, key),
    CONSTRAINT segments_match_known CHECK (match IN ('ALL', 'ANY'))
);

CREATE TABLE segment_members (
    segment_id  bigint      NOT NULL,
    subject_id  uuid        NOT NULL,
    CONSTRAINT segment_members_pkey PRIMARY KEY (segment_id, subject_id),
    CONSTRAINT segment_members_segment_fkey FOREIGN KEY (segment_id) REFERENCES segments ON DELETE CASCADE,
    CONSTRAINT segment_members_subject_fkey FOREIGN KEY (subject_id) REFERENCES subjects ON DELETE CASCADE
);
CREATE INDEX segment_members_subject_idx ON segment_members (subject_id);

-- Flags. Values are variant names, so that multi-variate flags need no other schema.
CREATE TABLE feature_flags (
    flag_id            bigint      GENERATED ALWAYS AS IDENTITY,
    environment        text        COLLATE "C" NOT NULL DEFAULT '',
    key                text        COLLATE "C" NOT NULL,
    description        text        NOT NULL DEFAULT '',
    enabled            boolean     NOT NULL,
    default_variant    text        NOT NULL,
    rollout_percentage smallint    NOT NULL,
    tags               text[]      NOT NULL DEFAULT '{}',
    owner              text        NOT NULL DEFAULT '',
    create_time        timestamptz NOT NULL,
    update_time        timestamptz NOT NULL,
    revision           bigint      NOT NULL,
    CONSTRAINT feature_flags_pkey PRIMARY KEY (flag_id),
    CONSTRAINT idx_flags_key UNIQUE (environment, key),
    CONSTRAINT feature_flags_rollout_range CHECK (rollout_percentage BETWEEN 0 AND 100)
);
CREATE INDEX feature_flags_tags_idx ON feature_flags USING gin (tags);

CREATE TABLE flag_segments (
    flag_id     bigint      NOT NULL,
    position    smallint    NOT NULL,
    segment_id  bigint      NOT NULL,
    variant     text        NOT NULL,
    CONSTRAINT flag_segments_pkey PRIMARY KEY (flag_id, position),
    CONSTRAINT flag_segments_segment_key UNIQUE (flag_id, segment_id),
    CONSTRAINT flag_segments_flag_fkey FOREIGN KEY (flag_id) REFERENCES feature_flags ON DELETE CASCADE,
    -- No cascade: a segment that a flag uses cannot be deleted.
    CONSTRAINT flag_segments_segment_fkey FOREIGN KEY (segment_id) REFERENCES segments
);
CREATE INDEX flag_segments_segment_idx ON flag_segments (segment_id);

CREATE TABLE targeted_users (
    flag_id     bigint      NOT NULL,
    subject_id  uuid        NOT NULL,
    variant     text        NOT NULL,
    CONSTRAINT idx_targeted_users_lookup PRIMARY KEY (flag_id, subject_id),
    CONSTRAINT targeted_users_flag_fkey FOREIGN KEY (flag_id) REFERENCES feature_flags ON DELETE CASCADE,
    CONSTRAINT targeted_users_subject_fkey FOREIGN KEY (subject_id) REFERENCES subjects ON DELETE CASCADE
);
CREATE INDEX targeted_users_subject_idx ON targeted_users (subject_id);

-- What each revision touched, so that a cache catches up in time proportional to the change. One row per revision; pruned.
CREATE TABLE change_log (
    revision      bigint      NOT NULL,
    create_time   timestamptz NOT NULL,
    resource_type text        NOT NULL,
    change_type   text        NOT NULL,
    environment   text        COLLATE "C" NOT NULL DEFAULT '',
    key           text        COLLATE "C" NOT NULL,
    subjects      uuid[]      NOT NULL DEFAULT '{}',
    CONSTRAINT change_log_pkey PRIMARY KEY (revision),
    CONSTRAINT change_log_change_type_known CHECK (change_type IN ('created', 'updated', 'deleted'))
);
CREATE INDEX change_log_create_time_idx ON change_log (create_time);

-- The audit log: what happened, chained by hashes, never changed. Documents stand apart, so that one can be redacted without breaking
-- the chain, which holds only their salted hashes.
CREATE TABLE audit_log (
    seq           bigint      NOT NULL,
    format        smallint    NOT NULL,
    revision      bigint      NOT NULL,
    create_time   timestamptz NOT NULL,
    actor         text        COLLATE "C" NOT NULL,
    action        text        COLLATE "C" NOT NULL,
    environment   text        COLLATE "C" NOT NULL,
    resource_type text        COLLATE "C" NOT NULL,
    resource_key  text        COLLATE "C" NOT NULL,
    document_hash bytea       NOT NULL,
    prev_hash     bytea       NOT NULL,
    hash          bytea       NOT NULL,
    CONSTRAINT audit_log_pkey PRIMARY KEY (seq),
    CONSTRAINT audit_log_hashes_are_sha256
        CHECK (octet_length(document_hash) = 32 AND octet_length(prev_hash) = 32 AND octet_length(hash) = 32)
) PARTITION BY RANGE (seq);
CREATE INDEX idx_audit_log_timestamp ON audit_log (create_time DESC);
CREATE INDEX audit_log_revision_idx ON audit_log (revision);
CREATE INDEX audit_log_actor_idx ON audit_log (actor, seq DESC);
CREATE INDEX audit_log_action_idx ON audit_log (action, seq DESC);
CREATE INDEX audit_log_resource_type_idx ON audit_log (resource_type, seq DESC);
CREATE INDEX audit_log_resource_idx ON audit_log (resource_type, resource_key, seq DESC);

CREATE TABLE audit_documents (
    seq           bigint      NOT NULL,
    salt          bytea       NOT NULL,
    document      bytea       NOT NULL,
    CONSTRAINT audit_documents_pkey PRIMARY KEY (seq)
);

-- Which parts of the log were moved to files, oldest first: what is left is chained to the newest of them.
CREATE TABLE audit_archives (
    first_seq     bigint      NOT NULL,
    last_seq      bigint      NOT NULL,
    last_hash     bytea       NOT NULL,
    sha256        bytea       NOT NULL,
    create_time   timestamptz NOT NULL,
    CONSTRAINT audit_archives_pkey PRIMARY KEY (last_seq),
    CONSTRAINT audit_archives_hashes_are_sha256 CHECK (octet_length(last_hash) = 32 AND octet_length(sha256) = 32)
);

CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % of % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege', HINT = 'Retention archives whole partitions.';
END $$;

-- ENABLE ALWAYS: a plain trigger does not fire for a session in replication role. TRUNCATE needs a trigger of its own on every partition:
-- partitions do not inherit it. `changes` are the others to refuse, such as 'UPDATE OR DELETE'; empty for a partition, which inherits those.
CREATE FUNCTION guard_audit_table(guarded regclass, changes text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE pg_catalog.format('CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()', guarded);
    EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_no_truncate', guarded);
    IF changes <> '' THEN
        EXECUTE pg_catalog.format('CREATE TRIGGER audit_no_change BEFORE %s ON %s FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()', changes, guarded);
    END IF;
    EXECUTE pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER audit_no_change', guarded);
END $$;
SELECT guard_audit_table('audit_log', 'UPDATE OR DELETE');
SELECT guard_audit_table('audit_archives', 'UPDATE OR DELETE');
-- DELETE is how a document is redacted.
SELECT guard_audit_table('audit_documents', 'UPDATE');

-- Makes the partition of the head and `ahead` more, each of `size` entries.
CREATE FUNCTION make_audit_partitions(ahead integer, size bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    first   bigint;
    name    text;
    made    integer := 0;
BEGIN
    -- Two instances may come at the same time.
    PERFORM pg_advisory_xact_lock(hashtext('gatekeeper.audit_partitions'));
    SELECT audit_seq / size INTO first FROM revision_head;
    FOR i IN first .. first + ahead LOOP
        name := 'audit_log_p' || lpad(i::text, 6, '0');
        IF to_regclass(name) IS NULL THEN
            EXECUTE pg_catalog.format('CREATE TABLE %I PARTITION OF audit_log FOR VALUES FROM (%s) TO (%s)', name, i * size, (i + 1) * size);
            PERFORM guard_audit_table(name::regclass, '');
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;

-- The same for the serving role, which may call it without owning the log, and may decide nothing.
CREATE FUNCTION ensure_audit_partitions() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    RETURN make_audit_partitions(2, 1000000);
END $$;
REVOKE ALL ON FUNCTION ensure_audit_partitions(), make_audit_partitions(integer, bigint), guard_audit_table(regclass, text) FROM PUBLIC;
SELECT ensure_audit_partitions();

-- Logins and lock-outs: no revisions, bounded.
CREATE TABLE auth_events (
    event_id    bigint      GENERATED ALWAYS AS IDENTITY,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    event       text        NOT NULL,
    username    text        COLLATE "C" NOT NULL,
    peer        text        NOT NULL DEFAULT '',
    CONSTRAINT auth_events_pkey PRIMARY KEY (event_id)
);
CREATE INDEX auth_events_create_time_idx ON auth_events (create_time);
CREATE INDEX auth_events_username_idx ON auth_events (username, event_id DESC);

-- Admin users. `token_epoch` is in every token; raising it stops all tokens of the user at once.
CREATE TABLE admin_user (
    admin_id      bigint      GENERATED ALWAYS AS IDENTITY,
    username      text        COLLATE "C" NOT NULL,
    password_hash text        NOT NULL,
    role          text        NOT NULL,
    enabled       boolean     NOT NULL DEFAULT true,
    token_epoch   bigint      NOT NULL DEFAULT 1,
    create_time   timestamptz NOT NULL,
    update_time   timestamptz NOT NULL,
    revision      bigint      NOT NULL DEFAULT 0,
    CONSTRAINT admin_user_pkey PRIMARY KEY (admin_id),
    CONSTRAINT admin_user_username_key UNIQUE (username),
    CONSTRAINT admin_user_role_known CHECK (role IN ('viewer', 'editor', 'admin'))
);

-- Only hashes of refresh tokens are kept. All tokens that descend from one login are a family.
CREATE TABLE refresh_tokens (
    token_hash  bytea       NOT NULL,
    family_id   uuid        NOT NULL,
    admin_id    bigint      NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    spent_time  timestamptz,
    CONSTRAINT refresh_tokens_pkey PRIMARY KEY (token_hash),
    CONSTRAINT refresh_tokens_admin_fkey FOREIGN KEY (admin_id) REFERENCES admin_user ON DELETE CASCADE,
    CONSTRAINT refresh_tokens_hash_is_sha256 CHECK (octet_length(token_hash) = 32)
);
CREATE INDEX refresh_tokens_family_idx ON refresh_tokens (family_id);
CREATE INDEX refresh_tokens_admin_idx ON refresh_tokens (admin_id);
CREATE INDEX refresh_tokens_expire_time_idx ON refresh_tokens (expire_time);

-- Credentials of calling services. The secret is sealed with GATEKEEPER_DATA_KEYS, and not hashed: signatures are verified with it.
CREATE TABLE client_keys (
    key_id         text        COLLATE "C" NOT NULL,
    name           text        NOT NULL,
    secret         bytea       NOT NULL,
    tier           text        NOT NULL,
    create_time    timestamptz NOT NULL,
    expire_time    timestamptz,
    revoke_time    timestamptz,
    last_used_time timestamptz,
    revision       bigint      NOT NULL,
    CONSTRAINT client_keys_pkey PRIMARY KEY (key_id),
    CONSTRAINT client_keys_tier_known CHECK (tier IN ('standard', 'high', 'unlimited'))
);

-- Successful mutations that carried a request_id, so that a retry gets the first answer. Kept for a day. Results, and the hashes of the
-- requests with them, are sealed with GATEKEEPER_DATA_KEYS; subjects are the people whom they concern.
CREATE TABLE idempotency_keys (
    actor        text        COLLATE "C" NOT NULL,
    action       text        COLLATE "C" NOT NULL,
    request_id   uuid        NOT NULL,
    revision     bigint      NOT NULL,
    audit_seq    bigint      NOT NULL,
    audit_hash   bytea       NOT NULL,
    subjects     uuid[]      NOT NULL,
    result       bytea       NOT NULL,
    create_time  timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (actor, action, request_id)
);
CREATE INDEX idempotency_keys_create_time_idx ON idempotency_keys (create_time);
CREATE INDEX idempotency_keys_subjects_idx ON idempotency_keys USING gin (subjects);
