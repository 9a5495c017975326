-- How long a list of what refers to a manifest is served before the upstream is asked again; absent means the default.
ALTER TABLE rules ADD COLUMN referrers_window_seconds bigint;
