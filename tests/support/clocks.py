"""A clock that a test moves."""


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        """Return the time as the module `time` does, for which this stands."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
