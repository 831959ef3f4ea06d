"""What can go wrong with the embedded database: met at start or on the command line, never by a client."""


class EmbeddedDatabaseError(RuntimeError):
    """The embedded database cannot be found, started or joined; the message says which one, why, and what to do."""
