"""What a process counts for its clients."""

from dataclasses import replace
from pathlib import Path

from gatekeeper_grpc.config.settings import load_settings
from gatekeeper_grpc.lifecycle.limits import Limits


def test_a_connection_with_tls_counts_for_more_memory_than_a_plain_one() -> None:
    file = Path("/etc/gatekeeper/tls.pem")  # Limits do not read it.
    plain = Limits.of(load_settings(), open_files=100_000)
    secure = Limits.of(load_settings(tls_cert_file=file, tls_key_file=file), open_files=100_000)

    assert plain.max_connections == secure.max_connections == 10_000
    assert (plain.connections_bytes, secure.connections_bytes) == (10_000 * 20 * 1_024, 10_000 * 50 * 1_024)


def test_calls_that_wait_for_their_turn_are_in_the_sum() -> None:
    limits = Limits.of(load_settings(), open_files=100_000)

    assert limits.waiting_bytes == (2_000 + 10_000) * 31 * 1_024
    assert limits.clients_mib > limits.waiting_bytes >> 20
    assert replace(limits, waiting_bytes=0).clients_mib == limits.clients_mib - 363
