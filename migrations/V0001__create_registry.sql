CREATE TABLE registry (
    only_row       boolean PRIMARY KEY DEFAULT true,
    registry_id    uuid    NOT NULL DEFAULT gen_random_uuid(),
    epoch          bigint  NOT NULL DEFAULT 1,
    revision       bigint  NOT NULL DEFAULT 1,
    oldest_release text    NOT NULL,
    CONSTRAINT registry_only_row_check CHECK (only_row)
);

COMMENT ON TABLE registry IS
    'One row: who this registry is, and the version of its configuration. Each change of configuration locks the row '
    'and raises the revision, so that changes are made one after the other; a restore raises the epoch. '
    'A control plane older than oldest_release refuses to start.';

INSERT INTO registry (oldest_release) VALUES ('0.1.0');
