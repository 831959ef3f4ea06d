"""The embedded database's error: raised at start or on the command line, never seen by a client."""


class EmbeddedDatabaseError(RuntimeError):
    """The embedded database cannot be found, started or joined; the message names it, the cause and the remedy."""
