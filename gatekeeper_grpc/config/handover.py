"""Hands secrets of the environment to a process that we start, so that they are not in its environment.

Anybody with the same account can read the environment of a process (/proc/PID/environ), and a process that it starts
inherits it. What is handed over instead is in memory that only the two processes have.
"""

import json
import os
from collections.abc import Mapping

from gatekeeper_grpc.config.settings import secret_fields, variable_of

# libpq reads it. The commands of clients read the other one.
_OTHER_SECRETS = ("PGPASSWORD", "GATEKEEPER_TOKEN")
_STDIN = 0


def split(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return an environment without secrets, and the secrets."""
    names = {*map(variable_of, secret_fields()), *_OTHER_SECRETS}
    secrets = {name: value for name, value in environment.items() if name in names}
    return {name: value for name, value in environment.items() if name not in names}, secrets


def give(secrets: Mapping[str, str]) -> int:
    """Return the descriptor of a file in memory with these secrets: the standard input of the other process."""
    descriptor = os.memfd_create("gatekeeper-secrets")
    with open(descriptor, "w", closefd=False) as file:
        json.dump(dict(secrets), file)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def take() -> None:
    """Put the secrets of the standard input where libpq and `load_settings` look for them; none if it is empty."""
    with open(_STDIN, closefd=False) as file:
        os.environ.update(json.loads(file.read() or "{}"))
