-- Credentials of automation, each made by an admin user, who may be deleted: then the token is good for nothing, and stays for the record.
-- The secret is 32 random bytes, so a plain SHA-256 of it is enough.
CREATE TABLE api_tokens (
    token_id       text        COLLATE "C" NOT NULL,
    secret_hash    bytea       NOT NULL,
    name           text        COLLATE "C" NOT NULL,
    role           text        NOT NULL,
    admin_id       bigint      NOT NULL,
    username       text        COLLATE "C" NOT NULL,
    create_time    timestamptz NOT NULL,
    expire_time    timestamptz NOT NULL,
    revoke_time    timestamptz,
    last_used_time timestamptz,
    revision       bigint      NOT NULL,
    CONSTRAINT api_tokens_pkey PRIMARY KEY (token_id),
    CONSTRAINT api_tokens_role_known CHECK (role IN ('viewer', 'editor', 'admin')),
    CONSTRAINT api_tokens_hash_is_sha256 CHECK (octet_length(secret_hash) = 32)
);
CREATE INDEX api_tokens_admin_idx ON api_tokens (admin_id, token_id);
