ALTER TABLE images
    ADD COLUMN revision bigint NOT NULL DEFAULT 0,
    ADD COLUMN record_version text;
ALTER TABLE tags ADD COLUMN record_version text;
ALTER TABLE repositories ADD COLUMN record_version text;
ALTER TABLE dead_incarnations
    ADD COLUMN name text COLLATE "C",
    ADD COLUMN record_version text;

CREATE INDEX dead_incarnations_name_idx ON dead_incarnations (name) WHERE name IS NOT NULL;

COMMENT ON TABLE images IS
    'The index of manifests and indexes; their links in object storage are the truth. The revision is the link''s and only '
    'grows; a deleted row stays, so that a late event about what was deleted does not bring it back.';
COMMENT ON COLUMN images.record_version IS
    'The version, as the store lists it, of the link that says the same as this row. Null: they have not been compared since '
    'the row has changed. The same holds for repositories and tags.';
COMMENT ON COLUMN dead_incarnations.record_version IS
    'The version of the tombstone at this name that a comparison has read, so that it is not read again.';
