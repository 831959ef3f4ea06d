DROP INDEX auth_events_event_idx, auth_events_credentials_idx;
ALTER TABLE auth_events DROP COLUMN subject_ids;
