CREATE TABLE images (
    incarnation         uuid             NOT NULL,
    digest              text COLLATE "C" NOT NULL,
    media_type          text             NOT NULL,
    manifest_size_bytes bigint           NOT NULL,
    content_size_bytes  bigint           NOT NULL,
    platforms           text[]           NOT NULL,
    config_digest       text,
    cache_time          timestamptz      NOT NULL,
    last_pull_time      timestamptz,
    deleted             boolean          NOT NULL DEFAULT false,
    index_time          timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT images_pkey PRIMARY KEY (incarnation, digest),
    CONSTRAINT images_incarnation_fkey FOREIGN KEY (incarnation) REFERENCES repositories (incarnation) ON DELETE CASCADE
);

CREATE INDEX images_cache_time_idx ON images (incarnation, cache_time DESC, digest DESC) WHERE NOT deleted;

COMMENT ON TABLE images IS
    'The index of manifests and indexes; their links in object storage are the truth. A deleted row stays, so that a '
    'late event about the link that was deleted (its cache_time is not younger) does not bring it back.';

CREATE TABLE image_children (
    incarnation uuid             NOT NULL,
    parent      text COLLATE "C" NOT NULL,
    child       text COLLATE "C" NOT NULL,
    CONSTRAINT image_children_pkey PRIMARY KEY (incarnation, parent, child),
    CONSTRAINT image_children_parent_fkey FOREIGN KEY (incarnation, parent)
        REFERENCES images (incarnation, digest) ON DELETE CASCADE
);

CREATE INDEX image_children_child_idx ON image_children (incarnation, child);

COMMENT ON TABLE image_children IS
    'Which manifests an index lists, cached or not: a manifest that is only a child is no image of its own.';

CREATE TABLE image_configs (
    incarnation uuid             NOT NULL,
    digest      text COLLATE "C" NOT NULL,
    platform    text             NOT NULL,
    CONSTRAINT image_configs_pkey PRIMARY KEY (incarnation, digest),
    CONSTRAINT image_configs_incarnation_fkey FOREIGN KEY (incarnation)
        REFERENCES repositories (incarnation) ON DELETE CASCADE
);

COMMENT ON TABLE image_configs IS
    'For which platform an image is, as its configuration says; known before or after the image itself.';

CREATE TABLE tags (
    incarnation   uuid             NOT NULL,
    tag           text COLLATE "C" NOT NULL,
    digest        text COLLATE "C",
    revision      bigint           NOT NULL,
    validate_time timestamptz,
    index_time    timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT tags_pkey PRIMARY KEY (incarnation, tag),
    CONSTRAINT tags_incarnation_fkey FOREIGN KEY (incarnation) REFERENCES repositories (incarnation) ON DELETE CASCADE
);

CREATE INDEX tags_digest_idx ON tags (incarnation, digest);

COMMENT ON TABLE tags IS
    'The index of tags; their records in object storage are the truth. The revision is the record''s and only grows; '
    'a deleted tag has no digest.';
