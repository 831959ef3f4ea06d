"""`gatekeeper serve` whose bulk evaluation neither pauses nor checks anything: the baseline of `bench.fairness`."""

from collections.abc import Iterable

from gatekeeper_grpc.cli.main import main
from gatekeeper_grpc.servicers.pacing import Pace


def _unpaced(_pace: Pace, items: Iterable[object]) -> Iterable[object]:
    return items


if __name__ == "__main__":
    Pace.through = _unpaced  # type: ignore[method-assign, assignment] # pyright: ignore[reportAttributeAccessIssue]
    Pace.portions = _unpaced  # type: ignore[method-assign, assignment] # pyright: ignore[reportAttributeAccessIssue]
    main()
