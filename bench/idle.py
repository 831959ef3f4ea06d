"""A server at rest: its threads, and how often each wakes up: `python -m bench.idle [seconds]`.

Starts a real `gatekeeper serve` with the embedded database, calls nothing, and counts the voluntary context switches of
every thread in /proc. Native threads of gRPC have no Python name.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.processes import serving

# Until then the first runs of all background tasks are over.
SETTLE_S = 3.0
NATIVE = "(native)"


def switches(pid: int) -> dict[int, int]:
    """Return the voluntary context switches of each thread so far."""
    return {
        int(task.name): int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches:")
    }


def serve_with_names(names: Path) -> None:
    """Run `gatekeeper serve` and write the id and the name of every Python thread to a file."""
    from gatekeeper_grpc.cli.main import main  # noqa: PLC0415 - before it, nobody may have started a thread

    start = threading.Thread.start

    def start_and_note(thread: threading.Thread) -> None:
        start(thread)
        with names.open("a") as file:
            file.write(f"{thread.native_id} {thread.name}\n")

    # Assigned as Any: the types of bound and unbound methods differ.
    patched: Any = threading.Thread
    patched.start = start_and_note
    names.write_text(f"{threading.get_native_id()} MainThread\n")
    sys.argv = ["gatekeeper", "serve"]
    main()


def measure(seconds: float) -> list[tuple[str, float]]:
    """Return name and voluntary context switches per second of every thread, most first."""
    with tempfile.TemporaryDirectory(prefix="gatekeeper-bench-") as folder:
        names = Path(folder) / "names"
        with serving(Path(folder) / "data", ("bench.idle", "--serve", str(names))) as instance:
            time.sleep(SETTLE_S)
            before = switches(instance.pid)
            time.sleep(seconds)
            after = switches(instance.pid)
            named = {
                int(number): name for number, name in (line.split(" ", 1) for line in names.read_text().splitlines())
            }
    rates = [(named.get(number, NATIVE), (after[number] - before.get(number, 0)) / seconds) for number in after]
    return sorted(rates, key=lambda row: -row[1])


def main() -> None:
    """Print the threads, how often each wakes up, and the totals."""
    if sys.argv[1:2] == ["--serve"]:
        serve_with_names(Path(sys.argv[2]))
        return
    rates = measure(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
    for name, per_s in rates:
        print(f"{per_s:6.1f} /s  {name}")
    python = sum(name != NATIVE for name, _ in rates)
    print(f"{python} Python threads, {len(rates) - python} native ones;", end=" ")
    print(f"{sum(per_s for _, per_s in rates):.0f} voluntary context switches a second")


if __name__ == "__main__":
    main()
