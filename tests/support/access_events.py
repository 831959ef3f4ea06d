"""The events that record reads of personal data, and a table that takes none."""

from typing import Any

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.audit_pb2 import AuthEvent
from gatekeeper_grpc.domain.caller import Role
from tests.support.clients import Installation, send

REFUSING = "ALTER TABLE auth_events ADD CONSTRAINT full_up CHECK (subject_ids IS NULL) NOT VALID"
SERVING = "ALTER TABLE auth_events DROP CONSTRAINT full_up"


def events(installation: Installation, **filters: Any) -> list[AuthEvent]:
    listed = send(installation.admin_as(Role.ADMIN), "ListAuthEvents", pb.ListAuthEventsRequest(**filters))
    return list(listed.auth_events)


def subject_of(installation: Installation, user_id: str) -> str:
    ((subject,),) = installation.query("SELECT subject_id FROM subjects WHERE user_id = %s", user_id)
    return str(subject)
