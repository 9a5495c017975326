CREATE TABLE events (
    event_id   uuid        PRIMARY KEY,
    apply_time timestamptz NOT NULL
);

CREATE INDEX events_apply_time_idx ON events (apply_time);

COMMENT ON TABLE events IS 'Ids of events that were applied, for as long as a node might repeat them.';

CREATE TABLE requests (
    principal_uid uuid        NOT NULL,
    request_id    uuid        NOT NULL,
    sealed_hash   bytea       NOT NULL,
    response      bytea,
    create_time   timestamptz NOT NULL,
    CONSTRAINT requests_pkey PRIMARY KEY (principal_uid, request_id)
);

CREATE INDEX requests_create_time_idx ON requests (create_time);

COMMENT ON TABLE requests IS
    'Answers to requests that came with an id, for 24 h, so that a retry gets the first one''s answer. The hash of the '
    'request is sealed, since a request can hold a secret; an answer that hands one out is not kept.';
