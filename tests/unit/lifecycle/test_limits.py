"""What a process counts for its clients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gatekeeper_grpc.config.settings import load_settings
from gatekeeper_grpc.lifecycle.limits import Limits
from gatekeeper_grpc.operations.health_server import STRANGERS_BYTES
from gatekeeper_grpc.transport.listener import NEW_CALLS
from gatekeeper_grpc.transport.pending_calls import PendingLimits


def test_a_connection_with_tls_counts_for_more_memory_than_a_plain_one() -> None:
    file = Path("/etc/gatekeeper/tls.pem")  # Limits do not read it.
    plain = Limits.of(load_settings(), open_files=100_000)
    secure = Limits.of(load_settings(tls_cert_file=file, tls_key_file=file), open_files=100_000)

    assert plain.max_connections == secure.max_connections == 10_000
    assert (plain.connections_bytes, secure.connections_bytes) == (10_000 * 20 * 1_024, 10_000 * 50 * 1_024)


def test_calls_that_wait_for_their_turn_are_in_the_sum() -> None:
    limits = Limits.of(load_settings(), open_files=100_000)

    assert limits.waiting_bytes == (2_000 + 5_200) * 15 * 1_024
    assert replace(limits, waiting_bytes=0).clients_mib == limits.clients_mib - 106


@pytest.mark.parametrize("own", [{}, {"admin_listen": "127.0.0.1:50061"}], ids=["one", "two listeners"])
def test_strangers_may_hold_64_mib_of_messages_on_all_listeners(own: dict[str, Any]) -> None:
    settings = load_settings(**own)
    each = NEW_CALLS.of_each(len(settings.client_addresses))
    kept = len(settings.client_addresses) * each.max_bytes

    assert Limits.of(settings, open_files=100_000).strangers_bytes <= 64 << 20
    assert kept + PendingLimits().max_bytes + STRANGERS_BYTES <= 64 << 20
