ALTER TABLE access_keys ADD COLUMN sealed_secret bytea;

ALTER TABLE access_keys
    ADD CONSTRAINT access_keys_sealed_secret_check CHECK (sealed_secret IS NULL OR state = 'ACTIVE');

COMMENT ON COLUMN access_keys.sealed_secret IS
    'A generated secret, sealed with the cluster key under access-key-secret/<key id>, to check what was signed with it. '
    'NULL for a secret that a person chose, and for a revoked key. It never leaves this table for the snapshot.';
