ALTER TABLE rules ADD COLUMN minimum_reader integer NOT NULL DEFAULT 0;
ALTER TABLE upstreams ADD COLUMN minimum_reader integer NOT NULL DEFAULT 0;
ALTER TABLE templates ADD COLUMN minimum_reader integer NOT NULL DEFAULT 0;
ALTER TABLE principals ADD COLUMN minimum_reader integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN rules.minimum_reader IS
    'The least reader that understands the row. A control plane with a lower number neither shows nor changes it, and '
    'tells nodes of it as of something that none of them understands. The same in upstreams, templates and principals.';
