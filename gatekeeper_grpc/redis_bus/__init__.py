"""Redis, if configured: announces revisions, keeps the last-known-good snapshot, and counts calls for rate limits.

Nothing depends on it. A command that fails is dropped. No evaluation waits for Redis; a login or a change does, for at
most 50 ms.
"""
