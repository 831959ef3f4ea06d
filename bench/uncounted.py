"""`gatekeeper serve` that does not count which flags are asked for: the baseline of `bench.usage`."""

from gatekeeper_grpc.cli.main import main
from gatekeeper_grpc.domain.usage import UsageCounter


def _uncounted(*_: object) -> None:
    pass


if __name__ == "__main__":
    UsageCounter.count = _uncounted  # type: ignore[method-assign, assignment] # pyright: ignore[reportAttributeAccessIssue]
    main()
