"""How long the server waits for a client's next message."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageTimeout:
    """How long a worker waits for a client's next message."""

    limit_s: float
    """The longest wait."""
    limit_when_saturated_s: float
    """The longest wait while other calls queue for the worker, if that is shorter."""
