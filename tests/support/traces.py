"""A person who leaves traces wherever Gatekeeper keeps any, and the search for what is left of them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Value
from psycopg import sql

from gatekeeper_client.v1 import admin_service_pb2 as pb
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub
from gatekeeper_client.v1.flag_pb2 import Flag
from gatekeeper_client.v1.segment_pb2 import CONDITION_OPERATOR_EQUALS, Condition, Segment
from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.auth.data_keys import DataKeys
from gatekeeper_grpc.embedded.binaries import find_bin_dir
from tests.support.clients import send
from tests.support.servers import KEYS

FLAGS = ("alpha", "beta")
SEGMENTS = ("friends", "testers")
# Names an attribute, so that caches hold what users have of it.
BY_PLAN = "by-plan"
DOCUMENTS_OF_A_LIFE = 7


def user_with(user_id: str, **attributes: str) -> User:
    user = User(user_id=user_id)
    for name, value in attributes.items():
        user.attributes[name] = value
    return user


def live(admin: AdminServiceStub, user_id: str) -> None:
    """Let a person leave traces, on a new installation: as target, member and user, in texts, in stored answers."""
    condition = Condition(attribute="plan", operator=CONDITION_OPERATOR_EQUALS, values=[Value(string_value="pro")])
    segments = [Segment(key=key) for key in SEGMENTS] + [Segment(key=BY_PLAN, conditions=[condition])]
    for segment in segments:
        send(admin, "CreateSegment", pb.CreateSegmentRequest(segment=segment))
    send(admin, "CreateFlag", pb.CreateFlagRequest(flag=Flag(key=FLAGS[0]), change_reason=f"for {user_id}, who asked"))
    described = Flag(key=FLAGS[1], description=f"breaks for {user_id}")
    send(admin, "CreateFlag", pb.CreateFlagRequest(flag=described, request_id=str(uuid4())))
    changed = Flag(key=FLAGS[1], description="breaks for nobody")
    send(admin, "UpdateFlag", pb.UpdateFlagRequest(flag=changed, update_mask=FieldMask(paths=["description"])))
    ids = [user_id, "bob"]
    for flag_key in FLAGS:
        targets = pb.AddTargetsRequest(flag_key=flag_key, user_ids=ids, value=True, request_id=str(uuid4()))
        send(admin, "AddTargets", targets)
    for segment_key in SEGMENTS:
        members = pb.AddSegmentMembersRequest(segment_key=segment_key, user_ids=ids, change_reason=f"see {user_id}.")
        send(admin, "AddSegmentMembers", members)
    known = user_with(user_id, plan="free", email=f"{user_id}@example.com")
    send(admin, "CreateUser", pb.CreateUserRequest(user=known, request_id=str(uuid4())))
    update = pb.UpdateUserRequest(user=user_with(user_id, plan="pro"), request_id=str(uuid4()))
    update.update_mask.paths.append("attributes.plan")
    send(admin, "UpdateUser", update)


def traces(dsn: str, text: str, *, files: Path | None = None, keys: DataKeys = KEYS.data) -> list[str]:
    """Name everything that holds a text: columns, sealed values, the dump, files outside the cluster."""
    found = [column for column, value in _values(dsn, keys) if text.encode() in value]
    if text in dump(dsn):
        found.append("pg_dump")
    return found + _traces_in_files(files, text.encode()) if files else found


def _traces_in_files(folder: Path, text: bytes) -> list[str]:
    kept = [path for path in folder.rglob("*") if path.is_file() and "postgres" not in path.parts]
    try:
        return [path.name for path in kept if text in path.name.encode() + path.read_bytes()]
    except FileNotFoundError:  # A server has renamed a file since it was listed.
        return _traces_in_files(folder, text)


def query(dsn: str, text: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
    """Read rows."""
    with psycopg.connect(dsn) as conn:
        return conn.execute(text, parameters).fetchall()


def dump(dsn: str) -> str:
    """Dump a database as SQL."""
    command = [str(find_bin_dir() / "pg_dump"), "--dbname", dsn, "--inserts"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


_TABLES = """
    SELECT relname FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
"""


def _values(dsn: str, keys: DataKeys) -> Iterator[tuple[str, bytes]]:
    """Every value of every row as bytes: what is sealed, opened; the rest as PostgreSQL writes it."""
    with psycopg.connect(dsn) as conn:
        for (table,) in conn.execute(_TABLES).fetchall():
            cursor = conn.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table)))
            names = [column.name for column in cursor.description or ()]
            for row in cursor:
                for name, value in zip(names, row, strict=True):
                    yield f"{table}.{name}", _bytes(f"{table}.{name}", value, keys)
            for (text,) in conn.execute(sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(table))):
                yield table, text.encode()


def _bytes(column: str, value: Any, keys: DataKeys) -> bytes:
    if column == "idempotency_keys.result":
        return keys.open(value)
    return bytes(value) if isinstance(value, bytes) else str(value).encode()
