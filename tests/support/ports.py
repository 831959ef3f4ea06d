"""Ports on loopback for servers that cannot let the kernel choose one."""

import socket

HOST = "127.0.0.1"


def free_port() -> int:
    """A port that the kernel gives to nobody else for the next minute.

    Its last connection is in TIME_WAIT: the kernel then chooses the port for no one, and who names it may listen on
    it with SO_REUSEADDR, as PostgreSQL, PgBouncer, Valkey, gRPC and Python's servers do.
    """
    with socket.create_server((HOST, 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            accepted, _ = listener.accept()
            accepted.close()  # The side that closes first is the one that waits.
            client.recv(1)
    return int(address[1])
