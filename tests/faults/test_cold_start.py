"""A fleet starts cold while its database is away, from what it last knew; corrupt files are refused (B4)."""
