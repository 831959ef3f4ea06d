"""`bench.peers` against Gatekeeper: the flags it creates, and the answers it checks, but for the load of h2load."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.peers.checks import WrongAnswer
from bench.peers.clients import Address
from bench.peers.flags import Flag, Kind, User, flags_of
from bench.peers.gatekeeper import create
from bench.peers.protocols import Gatekeeper
from bench.peers.rounds import ALL, EXAMINED, ONE, Subject, Trial, Work, pid_at, subject
from tests.support.clients import installed

FLAGS = flags_of(20)


@pytest.fixture(scope="module")
def measured(postgres: str) -> Iterator[Subject]:
    with installed(postgres) as installation, ExitStack() as stack:
        create(installation.admin, FLAGS)
        address = Address("127.0.0.1", installation.server.port)
        yield subject(stack, "gatekeeper", Gatekeeper(), address, headers={}, connections=8)


@pytest.mark.parametrize("kind", [ALL, ONE])
def test_gatekeeper_answers_as_the_flags_of_the_benchmark_say(measured: Subject, kind: str) -> None:
    trial = Trial(measured, Work(kind, FLAGS, users=100))

    trial.examine()

    assert trial.tally.answers == EXAMINED
    assert trial.tally.draws >= EXAMINED // 2
    assert trial.tally.kinds >= {*Kind} - {Kind.DISABLED}


@pytest.mark.parametrize("kind", [ALL, ONE])
def test_a_server_with_other_flags_is_not_measured(measured: Subject, kind: str) -> None:
    flags = [Flag(flag.key, Kind.OFF if flag.kind is Kind.ON else flag.kind) for flag in FLAGS]

    with pytest.raises(WrongAnswer, match="is True for user-"):
        Trial(measured, Work(kind, flags, users=100)).examine()


def test_a_server_whose_draws_are_not_even_is_not_measured(measured: Subject) -> None:
    flags = [Flag("flag-10", Kind.ROLLOUT)]  # It is on.

    with pytest.raises(WrongAnswer, match="draws at 50 % are true"):
        Trial(measured, Work(ONE, flags, users=100)).examine()


def test_a_refused_call_is_no_answer(measured: Subject) -> None:
    call = Gatekeeper().all_flags(FLAGS, User(1))._replace(body=b"\xff")

    with pytest.raises(WrongAnswer, match="INVALID_ARGUMENT"):
        measured.client.ask(call)


def test_the_calls_of_a_second_are_those_of_the_next_users(measured: Subject) -> None:
    work = Work(ALL, FLAGS, users=6)

    seconds = [work.calls(measured.protocol, second) for second in range(2)]

    asked = [
        [Gatekeeper().all_flags(FLAGS, User(number)).body for number in users] for users in ([0, 1, 2, 3], [4, 5, 0, 1])
    ]
    assert [[call.body for call in calls] for calls in seconds] == asked


def test_the_process_of_a_port_is_found(measured: Subject) -> None:
    assert measured.server is not None
    assert measured.cpu_s() > 0
    assert pid_at(Address("127.0.0.1", 1)) is None
