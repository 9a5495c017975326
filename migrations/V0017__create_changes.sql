CREATE TABLE changes (
    seq         bigint           GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    position    bigint,
    kind        text             NOT NULL,
    incarnation uuid             NOT NULL,
    repository  text COLLATE "C" NOT NULL,
    digest      text COLLATE "C",
    tag         text COLLATE "C",
    revision    bigint,
    change_time timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT changes_position_key UNIQUE (position)
);

CREATE INDEX changes_unnumbered_idx ON changes (seq) WHERE position IS NULL;
CREATE INDEX changes_change_time_idx ON changes (change_time);

COMMENT ON TABLE changes IS
    'What has changed rows of images and tags, appended in the same transaction. A change gets its position when it is '
    'committed and somebody reads: so positions are in the order in which changes are seen, and none comes late. seq '
    'orders changes of one row, since who changes it later has waited for who changed it before.';

CREATE TABLE change_log (
    is_only_row     boolean PRIMARY KEY DEFAULT true CHECK (is_only_row),
    last_position   bigint  NOT NULL DEFAULT 0,
    pruned_position bigint  NOT NULL DEFAULT 0
);

INSERT INTO change_log DEFAULT VALUES;

COMMENT ON TABLE change_log IS
    'One row: the last position that was given, and the last one that is not kept any more. Who gives positions, or '
    'removes changes, locks it.';

CREATE TABLE change_cursors (
    consumer    text        PRIMARY KEY,
    position    bigint      NOT NULL,
    update_time timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE change_cursors IS
    'How far each reader of changes has come. Changes are kept until all have passed them, for 30 days at most.';

CREATE TABLE reconcile_runs (
    uid         uuid        PRIMARY KEY,
    holder      text        NOT NULL,
    lease_until timestamptz NOT NULL,
    begin_time  timestamptz NOT NULL DEFAULT now(),
    end_time    timestamptz,
    is_complete boolean     NOT NULL DEFAULT false
);

CREATE INDEX reconcile_runs_begin_time_idx ON reconcile_runs (begin_time DESC);

COMMENT ON TABLE reconcile_runs IS
    'Comparisons of store and index. One control plane at a time makes one, as long as its lease lasts; a complete one '
    'has looked at all that the store and the index had when it began.';
