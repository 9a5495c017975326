CREATE TABLE operations (
    uid             uuid        PRIMARY KEY,
    kind            text        NOT NULL,
    repository      text COLLATE "C",
    access_key_id   text        NOT NULL,
    create_time     timestamptz NOT NULL DEFAULT now(),
    cancel_time     timestamptz,
    end_time        timestamptz,
    item_count      integer     NOT NULL,
    ended_count     integer     NOT NULL DEFAULT 0,
    failed_count    integer     NOT NULL DEFAULT 0,
    cancelled_count integer     NOT NULL DEFAULT 0,
    done_bytes      bigint      NOT NULL DEFAULT 0
);

CREATE INDEX operations_create_time_idx ON operations (create_time DESC, uid DESC);

COMMENT ON TABLE operations IS
    'What takes longer than a call, for a week after its end. Its items are rows of jobs; the counts follow them in the '
    'same transactions.';

CREATE TABLE jobs (
    uid                 uuid             PRIMARY KEY DEFAULT gen_random_uuid(),
    operation_uid       uuid,
    ordinal             integer          NOT NULL DEFAULT 0,
    kind                text             NOT NULL,
    priority            smallint         NOT NULL,
    repository          text COLLATE "C" NOT NULL,
    reference           text COLLATE "C" NOT NULL,
    platforms           text[]           NOT NULL DEFAULT '{}',
    incarnation         uuid,
    known_validate_time timestamptz,
    run_time            timestamptz      NOT NULL DEFAULT now(),
    lease_until         timestamptz,
    lease_token         uuid,
    node_id             text,
    attempt_count       integer          NOT NULL DEFAULT 0,
    is_cancelled        boolean          NOT NULL DEFAULT false,
    done_bytes          bigint           NOT NULL DEFAULT 0,
    total_bytes         bigint           NOT NULL DEFAULT 0,
    outcome             text,
    from_digest         text,
    to_digest           text,
    reason              text             NOT NULL DEFAULT '',
    end_time            timestamptz,
    CONSTRAINT jobs_operation_uid_fkey FOREIGN KEY (operation_uid) REFERENCES operations (uid) ON DELETE CASCADE
) WITH (fillfactor = 70);

CREATE INDEX jobs_queue_idx ON jobs (priority, run_time) WHERE end_time IS NULL;
CREATE INDEX jobs_operation_idx ON jobs (operation_uid, ordinal);
CREATE INDEX jobs_running_idx ON jobs (operation_uid) WHERE end_time IS NULL AND lease_until IS NOT NULL;
CREATE INDEX jobs_end_time_idx ON jobs (operation_uid, end_time) WHERE end_time IS NOT NULL;
CREATE UNIQUE INDEX jobs_automatic_key ON jobs (incarnation, reference) WHERE operation_uid IS NULL;

COMMENT ON TABLE jobs IS
    'What nodes are to do: the items of operations, and automatic syncs, which have none. A job is a node''s from its '
    'lease to lease_until, by the clock of this database, and whoever has no right lease_token does not change it. Items '
    'stay with their operation. An automatic sync is deleted when it has ended well, and otherwise stays for a while, '
    'during which its tag is not scheduled again.';

CREATE TABLE sync_paces (
    upstream_uid uuid        PRIMARY KEY,
    next_time    timestamptz NOT NULL,
    CONSTRAINT sync_paces_upstream_uid_fkey FOREIGN KEY (upstream_uid) REFERENCES upstreams (uid) ON DELETE CASCADE
);

COMMENT ON TABLE sync_paces IS
    'When the next automatic sync may ask each upstream: those that are scheduled come one after the other, however '
    'many are due and however many control planes schedule them.';
