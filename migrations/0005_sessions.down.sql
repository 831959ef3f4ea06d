ALTER TABLE admin_user DROP COLUMN must_change_password;
ALTER TABLE auth_events DROP COLUMN actor;
DROP INDEX refresh_tokens_sessions_idx;
ALTER TABLE refresh_tokens
    DROP COLUMN login_time,
    DROP COLUMN address,
    DROP COLUMN successor_hash,
    DROP COLUMN successor_nonce,
    DROP COLUMN repeat_time;
