"""Secrets of the environment reach a process that we start by its standard input, and not by its environment."""

import os
import subprocess
import sys

import pytest

from gatekeeper_grpc.config import handover
from gatekeeper_grpc.config.settings import secret_fields, variable_of

CANARY = "canary7f3a"
READ = "from gatekeeper_grpc.config import handover; handover.take(); import os; print(os.environ.get('PGPASSWORD'))"


def test_an_environment_is_split_into_secrets_and_the_rest() -> None:
    secrets = {variable_of(field): CANARY for field in secret_fields()} | {
        "PGPASSWORD": CANARY,
        "GATEKEEPER_TOKEN": CANARY,
    }
    rest = {"PATH": "/bin", "GATEKEEPER_WORKERS": "2", "GATEKEEPER_JWT_KEYS_FILE": "/run/keys"}

    assert handover.split({**secrets, **rest}) == (rest, secrets)


@pytest.mark.parametrize("secrets", [{"PGPASSWORD": f"{CANARY} \n'\"ü"}, {}], ids=["one", "none"])
def test_what_is_given_is_taken_by_the_other_process(secrets: dict[str, str]) -> None:
    with os.fdopen(handover.give(secrets)) as given:
        taken = subprocess.run(
            [sys.executable, "-c", READ], stdin=given, env={}, capture_output=True, text=True, check=True
        )

    assert taken.stdout == f"{secrets.get('PGPASSWORD')}\n"


def test_a_process_that_is_given_nothing_takes_nothing() -> None:
    taken = subprocess.run(
        [sys.executable, "-c", READ], stdin=subprocess.DEVNULL, env={}, capture_output=True, text=True, check=True
    )

    assert taken.stdout == "None\n"
