CREATE TABLE principals (
    uid            uuid             PRIMARY KEY,
    principal_id   text COLLATE "C" NOT NULL,
    permission_set text             NOT NULL,
    create_time    timestamptz      NOT NULL,
    CONSTRAINT principals_principal_id_key UNIQUE (principal_id)
);

COMMENT ON TABLE principals IS 'Who may call, and what they may do.';

CREATE TABLE access_keys (
    key_id        text COLLATE "C" NOT NULL,
    principal_uid uuid,
    sealed_hash   bytea            NOT NULL,
    state         text             NOT NULL,
    create_time   timestamptz      NOT NULL,
    CONSTRAINT access_keys_pkey PRIMARY KEY (key_id),
    CONSTRAINT access_keys_principal_uid_fkey FOREIGN KEY (principal_uid) REFERENCES principals (uid),
    CONSTRAINT access_keys_state_check CHECK (state IN ('ACTIVE', 'REVOKED'))
);

CREATE INDEX access_keys_principal_uid_idx ON access_keys (principal_uid, key_id);

COMMENT ON TABLE access_keys IS
    'Keys that principals call with; the hash of the secret is sealed with the cluster key under access-key/<key id>. '
    'Rows stay for ever, without a principal once that is deleted, so that a revoked id never comes back to life.';
