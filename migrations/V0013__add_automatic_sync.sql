ALTER TABLE rules ADD COLUMN automatic_sync boolean;

ALTER TABLE repositories ADD COLUMN automatic_sync boolean;

CREATE INDEX images_last_pull_time_idx ON images (last_pull_time) WHERE last_pull_time IS NOT NULL AND NOT deleted;

COMMENT ON COLUMN rules.automatic_sync IS
    'Whether tags in use are revalidated before they are stale; NULL is the default, which is that they are.';

COMMENT ON COLUMN repositories.automatic_sync IS
    'The same for one repository, as its record in object storage has it; NULL is as its rule says.';
