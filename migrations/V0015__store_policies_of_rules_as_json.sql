ALTER TABLE rules ADD COLUMN policy jsonb NOT NULL DEFAULT '{}';

UPDATE rules SET policy = jsonb_strip_nulls(jsonb_build_object(
    'window_seconds', window_seconds,
    'mode', mode,
    'immutable_tags', to_jsonb(immutable_tags),
    'max_stale_seconds', max_stale_seconds,
    'when_deleted', when_deleted,
    'when_denied', when_denied,
    'tag_windows', (
        SELECT coalesce(jsonb_agg(jsonb_build_object('pattern', pattern, 'window_seconds', seconds, 'mode', own_mode)
                                  ORDER BY position), '[]')
          FROM unnest(tag_window_patterns, tag_window_seconds, tag_window_modes) WITH ORDINALITY
               AS own (pattern, seconds, own_mode, position)),
    'tag_list_window_seconds', tag_list_window_seconds,
    'referrers_window_seconds', referrers_window_seconds,
    'automatic_sync', automatic_sync));

ALTER TABLE rules
    DROP CONSTRAINT rules_tag_windows_check,
    DROP COLUMN window_seconds,
    DROP COLUMN mode,
    DROP COLUMN immutable_tags,
    DROP COLUMN max_stale_seconds,
    DROP COLUMN when_deleted,
    DROP COLUMN when_denied,
    DROP COLUMN tag_window_patterns,
    DROP COLUMN tag_window_seconds,
    DROP COLUMN tag_window_modes,
    DROP COLUMN tag_list_window_seconds,
    DROP COLUMN referrers_window_seconds,
    DROP COLUMN automatic_sync;

COMMENT ON COLUMN rules.policy IS
    'What the rule says about freshness and syncs, as an object whose fields are those of `Policy` in '
    'domain/src/freshness.rs. An absent field is the default. Statements do not look into it; what they filter by is a '
    'column of its own.';
