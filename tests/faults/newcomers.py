"""Honest logins during an attack, each from an address that has never been seen, with one try each."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import grpc

from tests.faults.figures import BUSY_S
from tests.faults.proxy import proxied
from tests.faults.siege import Siege
from tests.faults.victims import KINDS, Outcome
from tests.support.processes import TIMEOUT_S, connect

_KIND = KINDS["login"]
# A busy machine checks one or two passwords a second, and other victims log in as well.
_PAUSE_S = 3.0
_FIRST = 100
"""The last part of the first address: those below belong to other victims."""


class Newcomers:
    """Log in with the right password from 127.0.2.100 on, one after the other."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        """How they ended; appended to by many threads."""
        self._stopping = threading.Event()

    @property
    def are_served(self) -> bool:
        """Whether enough of them were served in time."""
        return len(self._served()) >= _KIND.share * len(self.outcomes) > 0

    def __str__(self) -> str:
        slowest_s = max((outcome.took_s for outcome in self.outcomes), default=0.0)
        codes = dict(Counter(outcome.code for outcome in self.outcomes))
        return f"newcomers {len(self._served())}/{len(self.outcomes)}, the slowest took {slowest_s:.1f} s, {codes}"

    def _served(self) -> list[Outcome]:
        within_s = _KIND.within_s + BUSY_S - 1.5
        return [outcome for outcome in self.outcomes if outcome.code == "OK" and outcome.took_s <= within_s]

    @contextmanager
    def arriving(self, besieged: Siege) -> Iterator[None]:
        """Let them come for the length of the block."""
        arriving = threading.Thread(target=self._arrive, args=(besieged.server.port,), name="newcomers")
        arriving.start()
        try:
            yield
        finally:
            self._stopping.set()
            arriving.join(TIMEOUT_S)

    def _arrive(self, port: int) -> None:
        logins: list[threading.Thread] = []
        for number in count(_FIRST):
            login = threading.Thread(target=self._log_in, args=(port, f"127.0.2.{number}"), name=f"newcomer {number}")
            logins.append(login)
            login.start()
            if self._stopping.wait(_PAUSE_S):
                break
        for login in logins:
            login.join(TIMEOUT_S)

    def _log_in(self, port: int, address: str) -> None:
        with proxied(port, source=address) as proxy, connect(proxy.port) as channel:
            began, code, text = time.monotonic(), "OK", ""
            try:
                _KIND.call(channel, "")
            except grpc.RpcError as error:
                code, text = error.code().name, error.details() or ""
            self.outcomes.append(Outcome(code, text, time.monotonic() - began))
