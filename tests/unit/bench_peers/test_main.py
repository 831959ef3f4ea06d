"""The command line of `bench.peers`."""

import json
import os
import subprocess
import sys

import pytest

from bench.peers.__main__ import arguments, on_core, peers_of
from bench.peers.clients import Address
from bench.peers.protocols import Empty, Gatekeeper, Ofrep, Unleash


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.peers", *words], capture_output=True, text=True, check=False)


def test_servers_of_ours_need_no_url() -> None:
    words = ["gatekeeper", "ofrep", "http://127.0.0.1:1031", "empty", "unleash", "http://127.0.0.1:4242"]

    found = [(name, type(protocol), address) for name, protocol, address in peers_of(words)]

    assert found == [
        ("gatekeeper", Gatekeeper, None),
        ("ofrep:1031", Ofrep, Address("127.0.0.1", 1031)),
        ("empty", Empty, None),
        ("unleash:4242", Unleash, Address("127.0.0.1", 4242)),
    ]


def test_options_may_stand_between_servers() -> None:
    options = arguments(["ofrep", "--flags", "1000", "http://127.0.0.1:1031", "--work", "all"])

    assert options.servers == ["ofrep", "http://127.0.0.1:1031"]
    assert (options.flags, options.work) == (1000, ["all"])


def test_a_configuration_is_printed() -> None:
    printed = run("config", "ofrep", "--flags", "3")

    assert [*json.loads(printed.stdout)] == ["flag-0", "flag-1", "flag-2"]


@pytest.mark.parametrize("words", [["config"], ["config", "other"], ["flagd"], ["other", "http://127.0.0.1:1"]])
def test_a_wrong_command_line_says_what_is_known(words: list[str]) -> None:
    printed = run(*words)

    assert printed.returncode == 1
    assert "flagd" in printed.stderr or "grpc://" in printed.stderr
    assert "Traceback" not in printed.stderr


def test_a_core_is_kept_only_inside_the_block() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)

    with on_core(str(core)):
        assert os.sched_getaffinity(0) == {core}

    assert os.sched_getaffinity(0) == before
