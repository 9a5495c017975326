CREATE TABLE upstreams (
    uid                     uuid             PRIMARY KEY,
    upstream_id             text COLLATE "C" NOT NULL,
    kind                    text             NOT NULL,
    endpoint                text             NOT NULL,
    allow_plain_http        boolean          NOT NULL,
    allow_private_addresses boolean          NOT NULL,
    allow_hosts             text[]           NOT NULL,
    ca_certificates         text             NOT NULL,
    username                text             NOT NULL,
    sealed_password         bytea,
    revision                bigint           NOT NULL,
    create_time             timestamptz      NOT NULL,
    update_time             timestamptz      NOT NULL,
    CONSTRAINT upstreams_upstream_id_key UNIQUE (upstream_id)
);

COMMENT ON TABLE upstreams IS
    'Registries that rules pull from. The password is sealed with the cluster key under upstream-password/<uid>; '
    'revision is the configuration''s revision at the last change.';
