"""What announcements cost PostgreSQL, from what was measured with some sessions that LISTEN."""

from bench.cost_model import line_through
from bench.results import Result

LISTENERS = (10, 100, 300)
# Each instance announces a heartbeat to itself so often, and PostgreSQL wakes all that listen.
HEARTBEAT_EVERY_S = 5.0


def announcement_ms(result: Result, listeners: int) -> float:
    """Return the processor time of an announcement in ms: a line through what was measured with the most listeners.

    Raises:
        LookupError: It was not measured.
    """
    points = [(count, result.find(f"bus.listen.{count}.cpu")) for count in LISTENERS[-2:]]
    measured = [(count, each.value) for count, each in points if each]
    if len(measured) < 2:
        raise LookupError("the result has no bus.listen.*.cpu")
    base_ms, each_ms = line_through(measured[0], measured[1])
    return max(0.0, base_ms + listeners * each_ms)
