DROP TABLE usage_coverage, flag_last_named, flag_usage, unknown_flag_keys;
