"""`gatekeeper serve` whose bulk evaluation neither pauses nor checks anything: the baseline of `bench.fairness`."""

from collections.abc import Iterable

from gatekeeper_grpc.cli.main import main
from gatekeeper_grpc.servicers.pacing import Pacer


def _unpaced(_pacer: Pacer, items: Iterable[object], **_checks: object) -> Iterable[object]:
    return items


if __name__ == "__main__":
    Pacer.paced = _unpaced  # type: ignore[method-assign, assignment] # pyright: ignore[reportAttributeAccessIssue]
    main()
