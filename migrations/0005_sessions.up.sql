-- A login is a session: a family of refresh tokens, of which the one that is not spent says where the session stands. Rows of the
-- previous release have no login_time; theirs is the time of the token.
ALTER TABLE refresh_tokens
    ADD COLUMN login_time      timestamptz,
    ADD COLUMN address         text  COLLATE "C" NOT NULL DEFAULT '',
    -- Of a spent token: its successor, what the successor was derived with, and when the exchange was repeated. Without the spent token
    -- itself, which is stored nowhere, the nonce is of no use.
    ADD COLUMN successor_hash  bytea,
    ADD COLUMN successor_nonce bytea,
    ADD COLUMN repeat_time     timestamptz;
CREATE INDEX refresh_tokens_sessions_idx ON refresh_tokens (family_id) WHERE spent_time IS NULL;

-- Who ended a session, if not its owner.
ALTER TABLE auth_events ADD COLUMN actor text COLLATE "C" NOT NULL DEFAULT '';

-- Whether an admin user has to change the password before a login.
ALTER TABLE admin_user ADD COLUMN must_change_password boolean NOT NULL DEFAULT false;
