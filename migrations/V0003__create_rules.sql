CREATE TABLE rules (
    uid             uuid             PRIMARY KEY,
    rule_id         text COLLATE "C" NOT NULL,
    prefix          text COLLATE "C" NOT NULL,
    upstream_uid    uuid             NOT NULL,
    upstream_prefix text             NOT NULL,
    revision        bigint           NOT NULL,
    create_time     timestamptz      NOT NULL,
    update_time     timestamptz      NOT NULL,
    CONSTRAINT rules_rule_id_key UNIQUE (rule_id),
    CONSTRAINT rules_prefix_key UNIQUE (prefix),
    CONSTRAINT rules_upstream_uid_fkey FOREIGN KEY (upstream_uid) REFERENCES upstreams (uid)
);

CREATE INDEX rules_upstream_uid_idx ON rules (upstream_uid);

COMMENT ON TABLE rules IS
    'Maps namespace prefixes to upstreams; ROOT is the prefix of every name. revision is the configuration''s revision '
    'at the last change.';
