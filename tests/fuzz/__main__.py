"""Fuzzes a server that it starts: `python -m tests.fuzz --calls 50000 --seed 7`. Exits with 1 if it finds a fault."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.fuzz.run import CLIENTS, PARTS, Plan, fuzz


def main() -> int:
    """Fuzz as the arguments say, and print what was found."""
    options = argparse.ArgumentParser(prog="tests.fuzz", description=__doc__)
    options.add_argument("--calls", type=int, default=50_000)
    options.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="default: a random one")
    options.add_argument("--clients", type=int, default=CLIENTS, help="with 1, a seed gives the same calls each time")
    options.add_argument("--parts", type=int, default=PARTS, help="the state is judged after each part")
    options.add_argument("--explain", action="store_true", help="print how each RPC ended")
    asked = options.parse_args()
    plan = Plan(calls=asked.calls, seed=asked.seed, clients=asked.clients, parts=asked.parts)
    _say(f"seed {plan.seed}")
    with tempfile.TemporaryDirectory(prefix="gatekeeper-fuzz-") as folder:
        verdict = fuzz(plan, Path(folder), tell=_say)
    if asked.explain:
        for name, codes in sorted(verdict.by_method.items()):
            _say(f"{name}: {dict(codes.most_common())}")
        for refusal, count in verdict.refusals.most_common(60):
            _say(f"{count} x {refusal}")
    for fault in verdict.faults:
        _say(f"FAULT {fault}")
    _say(f"seed {plan.seed}: {verdict.fault_count} faults, {verdict.share_ok():.0%} OK")
    return 1 if verdict.fault_count else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
