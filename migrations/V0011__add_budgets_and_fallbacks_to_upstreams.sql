ALTER TABLE upstreams
    ADD COLUMN budget_requests       bigint,
    ADD COLUMN budget_window_seconds bigint,
    ADD COLUMN fallback_endpoints    text[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT upstreams_budget_check CHECK ((budget_requests IS NULL) = (budget_window_seconds IS NULL));

COMMENT ON TABLE upstreams IS
    'Registries that rules pull from. The password is sealed with the cluster key under upstream-password/<uid>; '
    'revision is the configuration''s revision at the last change. The budget is how many requests it may get in a '
    'window; NULL is as many as it lets us have. fallback_endpoints have the same content, and are asked in this order.';
