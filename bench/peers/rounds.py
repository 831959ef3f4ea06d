"""Measures servers in turn, one second each, and asks each of them one question in a hundred to check the answers."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil  # type: ignore[import-untyped]  # Comes with the embedded database.

from bench.peers.checks import Tally
from bench.peers.clients import Address, Client, client_of
from bench.peers.flags import MIX, Flag, Kind, User
from bench.peers.generator import PROCESSES, Generator, counted
from bench.peers.protocols import Call, Protocol
from bench.processes import Instance
from bench.unary import Round

# Questions before the load, so that the figures are of a server that answers rightly.
EXAMINED = 400
ALL, ONE = "all", "one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A server that is measured; without `server` its process is not known."""

    name: str
    protocol: Protocol
    client: Client
    generator: Generator
    server: Instance | None

    def cpu_s(self) -> float:
        """Return the processor time of its process; NaN if that is not known."""
        return self.server.cpu_s() if self.server else float("nan")


def subject(
    stack: ExitStack, name: str, protocol: Protocol, address: Address, *, headers: Mapping[str, str], connections: int
) -> Subject:
    """Connect to a server, until the stack is closed."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    headers = {"content-type": "application/json", **headers}
    pid = pid_at(address)
    return Subject(
        name=name,
        protocol=protocol,
        client=stack.enter_context(client_of(address, headers, over_grpc=protocol.grpc)),
        generator=Generator(address, folder, headers, connections=connections, over_grpc=protocol.grpc),
        server=Instance(port=address.port, pid=pid) if pid else None,
    )


def pid_at(address: Address) -> int | None:
    """Return the process that listens at a port of this machine; None if there is none, or another user's."""
    listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    return next((each.pid for each in listening if each.laddr.port == address.port), None)


@dataclass(frozen=True, slots=True)
class Work:
    """What is asked: all flags of one user, or one; the users take turns."""

    kind: str
    flags: Sequence[Flag]
    users: int

    def question(self, turn: int) -> tuple[Sequence[Flag], User]:
        """Return what to ask in a turn. About one flag that is disabled, products answer too differently."""
        user = User(turn % self.users)
        if self.kind == ALL:
            return self.flags, user
        enabled = [flag for flag in self.flags if flag.kind is not Kind.DISABLED]
        # Shifted, so that each flag gets each kind of user.
        return [enabled[(turn + turn // len(MIX)) % len(enabled)]], user

    def call(self, protocol: Protocol, flags: Sequence[Flag], user: User) -> Call | None:
        """Return the call for a question; None if the protocol has none."""
        return protocol.all_flags(flags, user) if self.kind == ALL else protocol.one_flag(flags[0], user)

    def calls(self, protocol: Protocol, second: int) -> list[Call]:
        """Return the calls of a second: those of the next users, or of all users if they need no body each."""
        questions = [self.question(second * PROCESSES + number) for number in range(max(self.users, PROCESSES))]
        calls = [self.call(protocol, *question) for question in questions[:PROCESSES]]
        if calls[0] is not None and calls[0].body is None:
            calls = [self.call(protocol, *question) for question in questions]
        return [call for call in calls if call is not None]


class Trial:
    """The work of one server, and what was found."""

    def __init__(self, measured: Subject, work: Work) -> None:
        self.subject = measured
        self.tally = Tally()
        self.rounds: list[Round] = []
        self._work = work
        self._turn = 0
        self._pause_s = 0.1

    def examine(self) -> None:
        """Ask before the load, and judge.

        Raises:
            WrongAnswer: the server does not answer as the flags say.
        """
        for _ in range(EXAMINED):
            self._ask_next()
        self.tally.judge()

    def warm_up(self) -> None:
        """Measure a second that does not count.

        Raises:
            WrongAnswer: an answer was none, or wrong.
        """
        self.measure(0)
        self.rounds.clear()

    def measure(self, second: int) -> None:
        """Load the server for a second, and check one answer in a hundred.

        Raises:
            WrongAnswer: an answer was none, or wrong.
        """
        calls = self._work.calls(self.subject.protocol, second)
        before_s = self.subject.cpu_s()
        running = self.subject.generator.start(calls)
        self._check_during(running)
        loads = [counted(process.communicate()[0]) for process in running]
        cpu_s = self.subject.cpu_s() - before_s
        if self.subject.protocol.grpc:
            for load, call in zip(loads, calls, strict=True):
                load.check_data(self.subject.client.ask(call))
        answers = max(sum(load.answers for load in loads), 1)
        self.rounds.append(Round(rate=answers, cpu_us=cpu_s / answers * 1e6))
        self._pause_s = 100 / answers

    def _check_during(self, running: Sequence[subprocess.Popen[str]]) -> None:
        next_at = time.monotonic()
        while any(process.poll() is None for process in running):
            if time.monotonic() >= next_at:
                self._ask_next()
                next_at += self._pause_s
            time.sleep(0.002)
        self.tally.judge()

    def _ask_next(self) -> None:
        flags, user = self._work.question(self._turn)
        call = self._work.call(self.subject.protocol, flags, user)
        assert call is not None
        answer = self.subject.client.ask(call)
        if self.subject.protocol.evaluates:
            self.tally.add(flags, user, call.read(answer))
        self._turn += 1
