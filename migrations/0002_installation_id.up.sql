-- Which database this is. Kept by dumps, restores and replicas; made anew where a schema begins anew. What was remembered of another
-- installation, such as a last-known-good snapshot, says nothing about this one. The default is volatile: every database gets its own.
ALTER TABLE revision_head ADD COLUMN installation_id uuid NOT NULL DEFAULT gen_random_uuid();
