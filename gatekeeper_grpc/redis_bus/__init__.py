"""Redis, where there is one: announces revisions in addition to PostgreSQL, and keeps the last-known-good snapshot.

Nothing depends on it: what it does not do at once is not done, and nobody who evaluates or writes waits for it.
"""
