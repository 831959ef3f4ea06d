"""Redis, where there is one: announces revisions in addition to PostgreSQL, and keeps the last-known-good snapshot.

Nothing depends on it: whatever it does not do in 50 ms is not done, and nobody who evaluates or writes waits for it.
"""
