"""The gRPC servers that clients call: one, or a second one for AdminService and AuthService."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc

from gatekeeper_grpc.config.listen_address import ListenAddress
from gatekeeper_grpc.config.settings import Settings, variable_of
from gatekeeper_grpc.interceptors.policy import POLICIES
from gatekeeper_grpc.lifecycle.limits import Limits
from gatekeeper_grpc.operations.health import ADMIN, AUTH, EVALUATION, HEALTH
from gatekeeper_grpc.operations.liveness import ServingThreadProbe
from gatekeeper_grpc.transport.connections import ConnectionLimits, ConnectionSweeper
from gatekeeper_grpc.transport.listener import bind
from gatekeeper_grpc.transport.tls import ServerTls


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerPlan:
    """What one of the servers serves, and where."""

    field: str
    """Of the setting that has its address."""
    address: ListenAddress
    services: tuple[str, ...]
    """Full names, without reflection."""
    reflection: bool
    connections: ConnectionLimits


def plans_of(settings: Settings, limits: Limits) -> list[ListenerPlan]:
    """Return the plan of each server, that of evaluation first."""
    everything, own = (EVALUATION, ADMIN, AUTH, HEALTH), settings.admin_listen
    first = ListenerPlan(
        field="listen",
        address=settings.listen,
        services=everything if own is None else (EVALUATION, HEALTH),
        reflection=settings.reflection,
        connections=limits.connections,
    )
    if own is None or limits.admin_connections is None:
        return [first]
    reflection = settings.reflection if settings.admin_reflection is None else settings.admin_reflection
    second = ListenerPlan(
        field="admin_listen",
        address=own,
        services=(ADMIN, AUTH, HEALTH),
        reflection=reflection,
        connections=limits.admin_connections,
    )
    return [first, second]


def served_elsewhere(plan: ListenerPlan, plans: Iterable[ListenerPlan]) -> Mapping[str, str]:
    """Return the methods that a server lacks and another one has, with the variable of its address."""
    variables = {service: variable_of(other.field) for other in plans for service in other.services}
    services = {method: method.split("/")[1] for method in POLICIES}
    return {
        method: variables[service]
        for method, service in services.items()
        if service in variables and service not in plan.services
    }


class ClientListener:
    """One of the servers with what watches over it: its connections, and its serving thread.

    Args:
        plan: Where it listens.
        server: Not started yet.
    """

    def __init__(self, plan: ListenerPlan, server: grpc.Server) -> None:
        self.plan = plan
        self.server = server
        self.sweeper = ConnectionSweeper(server, plan.connections)
        self.probe = ServingThreadProbe(server)
        self.port = 0
        """Where it listens; 0 of a Unix socket."""

    def bind(self, tls: ServerTls | None) -> None:
        """Listen.

        Raises:
            ListenError: The address is taken or not ours.
        """
        self.port = bind(self.server, self.plan.address, tls.credentials() if tls else None)

    def start(self) -> None:
        """Start to serve."""
        self.sweeper.start(self.port)
        self.server.start()
        self.probe.start()
