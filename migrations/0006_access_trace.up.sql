-- Reads of personal data are events as well: `subject_ids` are the people whose data was read, by the random ids that an erasure leaves
-- without a meaning. Null: an event about credentials.
ALTER TABLE auth_events ADD COLUMN subject_ids uuid[];
UPDATE auth_events SET subject_ids = array_remove(ARRAY[subject_id], NULL) WHERE event = 'user_exported';

-- Only events about credentials, which strangers cause, are bounded in number: the bound is found without the reads, of which there may
-- be millions. For the same reason, each kind of event can be listed by an index.
CREATE INDEX auth_events_credentials_idx ON auth_events (event_id) WHERE subject_ids IS NULL;
CREATE INDEX auth_events_event_idx ON auth_events (event, event_id DESC);
