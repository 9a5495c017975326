CREATE TABLE repositories (
    incarnation    uuid             PRIMARY KEY,
    name           text COLLATE "C" NOT NULL,
    rule_uid       uuid,
    create_time    timestamptz      NOT NULL,
    last_pull_time timestamptz,
    index_time     timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT repositories_name_key UNIQUE (name)
);

CREATE INDEX repositories_rule_uid_idx ON repositories (rule_uid, name);

COMMENT ON TABLE repositories IS
    'The index of repositories; their records in object storage are the truth. rule_uid outlives its rule. '
    'index_time is when the row was made: a younger row may be ahead of its record.';

CREATE TABLE dead_incarnations (
    incarnation uuid PRIMARY KEY,
    death_time  timestamptz NOT NULL
);

COMMENT ON TABLE dead_incarnations IS
    'Repositories that were deleted, also those that were never indexed: events about them come late and are ignored.';
