CREATE TABLE templates (
    uid             uuid             PRIMARY KEY,
    template_id     text COLLATE "C" NOT NULL,
    prefix          text COLLATE "C" NOT NULL,
    description     text             NOT NULL,
    tag_mutability  text             NOT NULL,
    exclusions      text[]           NOT NULL,
    resource_tags   jsonb            NOT NULL,
    revision        bigint           NOT NULL,
    create_time     timestamptz      NOT NULL,
    update_time     timestamptz      NOT NULL,
    CONSTRAINT templates_template_id_key UNIQUE (template_id),
    CONSTRAINT templates_prefix_key UNIQUE (prefix)
);

COMMENT ON TABLE templates IS
    'What repositories below a prefix are created with, by the nodes; ROOT is the prefix of every name. exclusions are '
    'patterns of tags that tag_mutability does not hold for. revision is the configuration''s revision at the last change.';

ALTER TABLE repositories ADD COLUMN settings jsonb;

COMMENT ON COLUMN repositories.settings IS
    'What its record in object storage says that it was created with; NULL is nothing, or not known.';
