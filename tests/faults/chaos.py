"""A seeded mix of faults while clients work: one fault after another, in an order that depends on the seed."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from tests.faults.fleet import Fleet
from tests.faults.postgres import Postgres
from tests.faults.proxy import Mode
from tests.support.processes import hanging

_JOIN_TIMEOUT_S = 60.0


class Chaos:
    """Breaks a fleet and its database, from `start` to `close`, with a breath between two faults."""

    def __init__(self, postgres: Postgres, fleet: Fleet, *, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._postgres = postgres
        self._fleet = fleet
        self._random = Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._break, name="chaos")
        self._faults: tuple[Callable[[], None], ...] = (
            self._break_a_network,
            self._break_a_network,
            self._hang_an_instance,
            self._kill_an_instance,
            self._hang_postgres,
            self._kill_postgres,
        )

    def start(self) -> None:
        """Begin to break things."""
        self._thread.start()

    def close(self) -> None:
        """End with the current fault, which is healed."""
        self._stopping.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def __str__(self) -> str:
        return ", ".join(f"{count} x {fault}" for fault, count in sorted(self.done.items()))

    def _break(self) -> None:
        while not self._stopping.wait(self._random.uniform(0.2, 0.8)):
            self._random.choice(self._faults)()

    def _any_index(self) -> int:
        return self._random.randrange(len(self._fleet.instances))

    def _break_a_network(self) -> None:
        mode = self._random.choice([mode for mode in Mode if mode is not Mode.PASS])
        self.done[f"network {mode.name.lower().replace('_', '-')}"] += 1
        network = self._fleet[self._any_index()].route.network
        assert network
        with network.broken(mode, latency_s=self._random.uniform(0.01, 0.1)):
            time.sleep(self._random.uniform(0.3, 1.5))

    def _hang_an_instance(self) -> None:
        self.done["instance hung"] += 1
        pid = self._fleet[self._any_index()].gatekeeper.process.pid
        with hanging(lambda: [pid]):
            time.sleep(self._random.uniform(0.3, 1.5))

    def _kill_an_instance(self) -> None:
        self.done["instance killed"] += 1
        index = self._any_index()
        self._fleet[index].gatekeeper.kill()
        self._fleet.restart(index)

    def _hang_postgres(self) -> None:
        self.done["PostgreSQL hung"] += 1
        with self._postgres.hanging():
            time.sleep(self._random.uniform(0.3, 1.0))

    def _kill_postgres(self) -> None:
        self.done["PostgreSQL killed"] += 1
        self._postgres.kill()
