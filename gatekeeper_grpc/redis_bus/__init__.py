"""Redis, if configured: announces revisions in addition to PostgreSQL, and keeps the last-known-good snapshot.

Nothing depends on it. A command that fails is dropped, and no evaluation or write waits for Redis.
"""
