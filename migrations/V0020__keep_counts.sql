ALTER TABLE images
    ADD COLUMN tag_count    integer NOT NULL DEFAULT 0,
    ADD COLUMN parent_count integer NOT NULL DEFAULT 0;
ALTER TABLE repositories ADD COLUMN image_count bigint NOT NULL DEFAULT 0;

UPDATE images i SET tag_count = counted.n
  FROM (SELECT incarnation, digest, count(*) AS n FROM tags WHERE digest IS NOT NULL GROUP BY incarnation, digest) counted
 WHERE i.incarnation = counted.incarnation AND i.digest = counted.digest;
UPDATE images i SET parent_count = counted.n
  FROM (SELECT incarnation, child, count(*) AS n FROM image_children GROUP BY incarnation, child) counted
 WHERE i.incarnation = counted.incarnation AND i.digest = counted.child;

ALTER TABLE images
    ADD COLUMN listed boolean NOT NULL GENERATED ALWAYS AS (NOT deleted AND (tag_count > 0 OR parent_count = 0)) STORED;

UPDATE repositories r SET image_count = counted.n
  FROM (SELECT incarnation, count(*) AS n FROM images WHERE listed GROUP BY incarnation) counted
 WHERE r.incarnation = counted.incarnation;

COMMENT ON COLUMN images.tag_count IS 'How many tags mean this image; triggers keep it, as they keep parent_count.';
COMMENT ON COLUMN images.parent_count IS 'How many indexes of the repository list this manifest.';
COMMENT ON COLUMN images.listed IS
    'Whether lists show it: what an index lists is part of that image, and is shown by itself only if it has a tag.';
COMMENT ON COLUMN repositories.image_count IS 'How many of its images are listed; triggers keep it.';

CREATE FUNCTION images_count_own() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT count(*) INTO NEW.tag_count
      FROM tags WHERE incarnation = NEW.incarnation AND digest = NEW.digest;
    SELECT count(*) INTO NEW.parent_count
      FROM image_children WHERE incarnation = NEW.incarnation AND child = NEW.digest;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION images_count_own IS
    'Counts what a new image has already. Whoever writes to any of these tables has locked the row of the repository, so '
    'no two transactions count at once.';

-- Triggers for INSERT and DELETE call their rows `changed_rows`, so that one statement serves both.
CREATE FUNCTION images_count_tags() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    direction integer := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        UPDATE images i SET tag_count = tag_count + n
          FROM (SELECT incarnation, digest, sum(one) AS n
                  FROM (SELECT incarnation, digest, 1 AS one FROM rows_after
                        UNION ALL
                        SELECT incarnation, digest, -1 FROM rows_before) both_rows
                 WHERE digest IS NOT NULL GROUP BY incarnation, digest HAVING sum(one) <> 0) changed
         WHERE i.incarnation = changed.incarnation AND i.digest = changed.digest;
    ELSE
        UPDATE images i SET tag_count = tag_count + direction * n
          FROM (SELECT incarnation, digest, count(*) AS n FROM changed_rows WHERE digest IS NOT NULL
                 GROUP BY incarnation, digest) changed
         WHERE i.incarnation = changed.incarnation AND i.digest = changed.digest;
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION images_count_parents() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    direction integer := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
BEGIN
    UPDATE images i SET parent_count = parent_count + direction * n
      FROM (SELECT incarnation, child, count(*) AS n FROM changed_rows GROUP BY incarnation, child) changed
     WHERE i.incarnation = changed.incarnation AND i.digest = changed.child;
    RETURN NULL;
END $$;

CREATE FUNCTION repositories_count_images() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    direction integer := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        UPDATE repositories r SET image_count = image_count + n
          FROM (SELECT incarnation, sum(one) AS n
                  FROM (SELECT incarnation, 1 AS one FROM rows_after WHERE listed
                        UNION ALL
                        SELECT incarnation, -1 FROM rows_before WHERE listed) both_rows
                 GROUP BY incarnation HAVING sum(one) <> 0) changed
         WHERE r.incarnation = changed.incarnation;
    ELSE
        UPDATE repositories r SET image_count = image_count + direction * n
          FROM (SELECT incarnation, count(*) AS n FROM changed_rows WHERE listed GROUP BY incarnation) changed
         WHERE r.incarnation = changed.incarnation;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER images_count_own BEFORE INSERT ON images FOR EACH ROW EXECUTE FUNCTION images_count_own();

CREATE TRIGGER tags_inserted AFTER INSERT ON tags REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION images_count_tags();
CREATE TRIGGER tags_updated AFTER UPDATE ON tags REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION images_count_tags();
CREATE TRIGGER tags_deleted AFTER DELETE ON tags REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION images_count_tags();

CREATE TRIGGER image_children_inserted AFTER INSERT ON image_children REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION images_count_parents();
CREATE TRIGGER image_children_deleted AFTER DELETE ON image_children REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION images_count_parents();

CREATE TRIGGER images_inserted AFTER INSERT ON images REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION repositories_count_images();
CREATE TRIGGER images_updated AFTER UPDATE ON images REFERENCING OLD TABLE AS rows_before NEW TABLE AS rows_after
    FOR EACH STATEMENT EXECUTE FUNCTION repositories_count_images();
CREATE TRIGGER images_deleted AFTER DELETE ON images REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION repositories_count_images();

-- Pages of lists, each in the order of one index.
DROP INDEX images_cache_time_idx;
CREATE INDEX images_listed_idx ON images (incarnation, cache_time DESC, digest DESC) WHERE listed;
CREATE INDEX images_tagged_idx ON images (incarnation, cache_time DESC, digest DESC) WHERE listed AND tag_count > 0;
CREATE INDEX images_untagged_idx ON images (incarnation, cache_time DESC, digest DESC) WHERE listed AND tag_count = 0;
CREATE INDEX tags_live_idx ON tags (incarnation, tag) WHERE digest IS NOT NULL;
CREATE INDEX repositories_cached_idx ON repositories (name) WHERE rule_uid IS NOT NULL;
CREATE INDEX repositories_hosted_idx ON repositories (name) WHERE rule_uid IS NULL;

-- A repository with millions of images cannot be deleted in one statement: what it had is removed later, in parts.
CREATE TABLE remains (
    incarnation uuid PRIMARY KEY,
    delete_time timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE remains IS
    'Incarnations without a row in repositories, of which other tables may still have rows, which no list shows.';

CREATE FUNCTION remains_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO remains (incarnation) SELECT incarnation FROM changed_rows ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE FUNCTION remains_take_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM remains WHERE incarnation = NEW.incarnation;
    IF FOUND THEN
        SELECT count(*) INTO NEW.image_count FROM images WHERE incarnation = NEW.incarnation AND listed;
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION remains_take_back IS
    'A repository that comes back with the same incarnation has what is left of it again. Whoever removes that holds a '
    'lock on the row in remains, so this waits for it.';

CREATE TRIGGER repositories_deleted AFTER DELETE ON repositories REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION remains_note();
CREATE TRIGGER repositories_inserted BEFORE INSERT ON repositories
    FOR EACH ROW EXECUTE FUNCTION remains_take_back();

ALTER TABLE images DROP CONSTRAINT images_incarnation_fkey;
ALTER TABLE tags DROP CONSTRAINT tags_incarnation_fkey;
ALTER TABLE image_configs DROP CONSTRAINT image_configs_incarnation_fkey;
