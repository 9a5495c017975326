-- Operations that run are forgotten with their items: their rows were of one kind's shape.
DROP TABLE jobs;
DELETE FROM operations;

CREATE TABLE jobs (
    uid           uuid             PRIMARY KEY DEFAULT gen_random_uuid(),
    operation_uid uuid,
    ordinal       integer          NOT NULL DEFAULT 0,
    kind          text COLLATE "C" NOT NULL,
    upstream      text COLLATE "C" NOT NULL DEFAULT '',
    subject       text COLLATE "C" NOT NULL,
    key           text COLLATE "C",
    payload       jsonb            NOT NULL,
    priority      smallint         NOT NULL,
    run_time      timestamptz      NOT NULL DEFAULT now(),
    turn_time     timestamptz      NOT NULL,
    lease_until   timestamptz,
    lease_token   uuid,
    node_id       text,
    attempt_count integer          NOT NULL DEFAULT 0,
    is_cancelled  boolean          NOT NULL DEFAULT false,
    done_bytes    bigint           NOT NULL DEFAULT 0,
    total_bytes   bigint           NOT NULL DEFAULT 0,
    outcome       text,
    result        jsonb,
    reason        text             NOT NULL DEFAULT '',
    end_time      timestamptz,
    CONSTRAINT jobs_operation_uid_fkey FOREIGN KEY (operation_uid) REFERENCES operations (uid) ON DELETE CASCADE,
    CONSTRAINT jobs_key_key UNIQUE (key)
) WITH (fillfactor = 70);

CREATE INDEX jobs_queue_idx ON jobs (kind, upstream, turn_time, uid) WHERE end_time IS NULL;
CREATE INDEX jobs_leased_idx ON jobs (kind, upstream) WHERE end_time IS NULL AND lease_token IS NOT NULL;
CREATE INDEX jobs_operation_idx ON jobs (operation_uid, ordinal);
CREATE INDEX jobs_running_idx ON jobs (operation_uid) WHERE end_time IS NULL AND lease_until IS NOT NULL;
CREATE INDEX jobs_end_time_idx ON jobs (operation_uid, end_time) WHERE end_time IS NOT NULL;

COMMENT ON TABLE jobs IS
    'What nodes are to do: the items of operations, and automatic syncs, which have none. A job is a node''s from its '
    'lease to lease_until, by the clock of this database, and whoever has no right lease_token does not change it. Items '
    'stay with their operation. An automatic sync is deleted when it has ended well, and otherwise stays for a while, '
    'during which its tag is not scheduled again: its key says which that is.';

COMMENT ON COLUMN jobs.kind IS 'What payload and result mean, which are the kind''s own; subject names what it is about.';

COMMENT ON COLUMN jobs.upstream IS
    'Whose turns it takes: jobs of one kind at one upstream wait for each other, those of others take turns with them.';

COMMENT ON COLUMN jobs.turn_time IS
    'run_time, and later by a minute for each step of priority: who has waited longer than that is not overtaken.';
