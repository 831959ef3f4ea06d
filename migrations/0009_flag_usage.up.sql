-- What flags are asked for and what they answered. Instances count in memory and add to these rows once a minute, without the lock of
-- revision_head: usage has no revision and no audit entry. Rows refer to flags without foreign keys, whose locks would meet those of a
-- DeleteFlag in the other order. Maintenance deletes the rows of flags that are gone; flag_id is never used again (decision 0045).

-- Since when usage is counted, and the last minute in which a request for all flags was answered.
CREATE TABLE usage_coverage (
    singleton           boolean     NOT NULL DEFAULT true,
    since               timestamptz NOT NULL DEFAULT clock_timestamp(),
    all_flags_time      timestamptz,
    CONSTRAINT usage_coverage_pkey PRIMARY KEY (singleton),
    CONSTRAINT usage_coverage_is_one_row CHECK (singleton)
);
INSERT INTO usage_coverage DEFAULT VALUES;

-- The last minute in which a request named a flag.
CREATE TABLE flag_last_named (
    flag_id     bigint      NOT NULL,
    named_time  timestamptz NOT NULL,
    CONSTRAINT flag_last_named_pkey PRIMARY KEY (flag_id)
) WITH (fillfactor = 70);

-- Decisions about a flag in an hour, or in a day for days that are past the time of hourly rows.
CREATE TABLE flag_usage (
    flag_id             bigint      NOT NULL,
    start_time          timestamptz NOT NULL,
    hours               smallint    NOT NULL,
    named               boolean     NOT NULL,
    variant             text        COLLATE "C" NOT NULL,
    reason              smallint    NOT NULL,
    decisions           bigint      NOT NULL,
    estimated_decisions bigint      NOT NULL,
    CONSTRAINT flag_usage_pkey PRIMARY KEY (flag_id, start_time, hours, named, variant, reason),
    CONSTRAINT flag_usage_is_hourly_or_daily CHECK (hours IN (1, 24))
) WITH (fillfactor = 70);
CREATE INDEX flag_usage_age_idx ON flag_usage (start_time);

-- Keys that clients asked for and that no flag had.
CREATE TABLE unknown_flag_keys (
    key             text        COLLATE "C" NOT NULL,
    requests        bigint      NOT NULL,
    last_asked_time timestamptz NOT NULL,
    CONSTRAINT unknown_flag_keys_pkey PRIMARY KEY (key),
    CONSTRAINT unknown_flag_keys_length CHECK (octet_length(key) BETWEEN 1 AND 128)
);
