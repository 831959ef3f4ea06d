"""How long garbage collection stops a process that serves 10,000 flags: `python -m bench.pauses FILE serve`.

The server notes the length of each of its collections. It answers calls for 20 of the flags, while another client
changes flags, so that snapshots come and go.
"""

import gc
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.field_mask_pb2 import FieldMask

from bench.figures import Effort, Figure, figure
from bench.processes import FLAGS, Instance, database_url, fill, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.evaluation_pb2 import EvaluationContext
from gatekeeper_client.v1.evaluation_service_pb2 import EvaluateFlagsRequest
from gatekeeper_client.v1.evaluation_service_pb2_grpc import EvaluationServiceStub

ALL_FLAGS = 10_000
OLDEST = 2
SECONDS_EACH = 2.0
CHANGE_EVERY_S = 0.02
WARM_UP_S = 1.0


def measure(effort: Effort) -> Iterator[Figure]:
    """Measure the pauses of a server under calls and changes."""
    flags = effort.scaled(ALL_FLAGS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(folder) as instance:
            fill(database_url(folder), flags=flags)
        module = ("bench.pauses", str(folder / "pauses"), "serve")
        with serving(folder, module) as instance, changing(instance):
            call(instance, WARM_UP_S)
            seen = len(pauses(folder / "pauses"))
            call(instance, SECONDS_EACH * effort.seconds * effort.rounds)
        noted = pauses(folder / "pauses")[seen:]
    longest = max((pause for _, pause in noted), default=0.0)
    yield figure("pauses.longest", f"longest pause of garbage collection, {flags:,} flags", "ms", longest)
    whole = sum(generation == OLDEST for generation, _ in noted)
    yield figure("pauses.whole", f"whole collections, of {len(noted)}", "", whole)


def pauses(file: Path) -> list[tuple[int, float]]:
    """Read the generation and the milliseconds of each collection."""
    rows = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return [(int(generation), float(pause)) for generation, pause in rows]


def call(instance: Instance, seconds: float) -> None:
    """Evaluate one user after the other."""
    keys, until, number = [f"flag-{key}" for key in range(1, FLAGS + 1)], time.monotonic() + seconds, 0
    with instance.channel() as channel:
        evaluate = EvaluationServiceStub(channel).EvaluateFlags
        while time.monotonic() < until:
            number += 1
            evaluate(EvaluateFlagsRequest(context=EvaluationContext(user_id=f"user-{number}"), flag_keys=keys))


@contextmanager
def changing(instance: Instance) -> Iterator[None]:
    """Change one flag after the other inside the block, at most 50 times a second."""
    over, metadata = threading.Event(), log_in(instance)

    def change() -> None:
        number = 0
        with instance.channel() as channel:
            service = AdminServiceStub(channel)
            while not over.wait(CHANGE_EVERY_S):
                number += 1
                flag = flag_pb2.Flag(key=f"flag-{number % FLAGS + 1}", rollout_percentage=number % 100)
                request = admin.UpdateFlagRequest(flag=flag, update_mask=FieldMask(paths=["rollout_percentage"]))
                service.UpdateFlag(request, metadata=metadata)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def serve(file: Path) -> None:
    """Run `gatekeeper serve` and write the generation and the milliseconds of each collection to a file."""
    from gatekeeper_grpc.cli.main import main  # noqa: PLC0415 - collections of its import count

    began = [0.0]
    noted = file.open("w", buffering=1, encoding="utf-8")

    def note(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            began[0] = time.perf_counter()
        else:
            noted.write(f"{about['generation']} {(time.perf_counter() - began[0]) * 1_000:.3f}\n")

    gc.callbacks.append(note)
    sys.argv = ["gatekeeper", "serve"]
    main()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
