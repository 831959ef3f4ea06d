ALTER TABLE revision_head DROP COLUMN installation_id;
