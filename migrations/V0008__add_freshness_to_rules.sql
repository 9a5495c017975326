ALTER TABLE rules
    ADD COLUMN window_seconds          bigint,
    ADD COLUMN mode                    text,
    ADD COLUMN immutable_tags          text[]   NOT NULL DEFAULT '{}',
    ADD COLUMN max_stale_seconds       bigint,
    ADD COLUMN when_deleted            text,
    ADD COLUMN when_denied             text,
    ADD COLUMN tag_window_patterns     text[]   NOT NULL DEFAULT '{}',
    ADD COLUMN tag_window_seconds      bigint[] NOT NULL DEFAULT '{}',
    ADD COLUMN tag_window_modes        text[]   NOT NULL DEFAULT '{}',
    ADD COLUMN tag_list_window_seconds bigint,
    ADD CONSTRAINT rules_tag_windows_check CHECK (
        cardinality(tag_window_patterns) = cardinality(tag_window_seconds)
        AND cardinality(tag_window_patterns) = cardinality(tag_window_modes));

COMMENT ON TABLE rules IS
    'Maps namespace prefixes to upstreams; ROOT is the prefix of every name. revision is the configuration''s revision '
    'at the last change. How far tags are trusted: NULL is the default, as for rules that were created before there was '
    'a choice, or by a control plane that does not know of it; max_stale_seconds NULL is for ever. The three tag_window '
    'columns are one list, in order; a NULL in one leaves the rule''s own.';
