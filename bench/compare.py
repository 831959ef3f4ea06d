"""Two checkouts, benchmarked in turn: `python -m bench.compare OTHER [benchmark...]`.

OTHER is another checkout of Gatekeeper in which `make install` was run, such as the commit before a change. Each
benchmark runs in it, here, here, and in it again, so that a machine that becomes slower or faster favours neither.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
BENCHMARKS = ("unary", "bulk", "propagation")


def run(checkout: Path, benchmark: str) -> str:
    """Run one benchmark in a checkout; returns what it prints."""
    command = [str(checkout / ".venv/bin/python"), "-m", "bench", benchmark]
    return subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Compare."""
    other = Path(sys.argv[1]).resolve()
    for benchmark in sys.argv[2:] or BENCHMARKS:
        for name, checkout in (("other", other), ("here", HERE), ("here", HERE), ("other", other)):
            for line in run(checkout, benchmark).splitlines():
                print(f"{benchmark:<12} {name:<6} {line}", flush=True)


if __name__ == "__main__":
    main()
