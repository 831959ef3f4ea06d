"""Update masks: what they name is read, what cannot be updated is refused."""

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from gatekeeper_client.v1.user_pb2 import User
from gatekeeper_grpc.domain.errors import InvalidArgument
from gatekeeper_grpc.wire.masks import changes_from_mask

READERS = {"etag": lambda user: user.etag, "revision": lambda user: user.revision}


def test_only_the_fields_that_a_mask_names_are_read() -> None:
    assert changes_from_mask(FieldMask(paths=["revision"]), User(etag="e", revision=3), READERS) == {"revision": 3}


def test_a_path_that_is_repeated_counts_once() -> None:
    assert changes_from_mask(FieldMask(paths=["etag", "etag"]), User(etag="e"), READERS) == {"etag": "e"}


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        ([], "update_mask must name at least one of etag, revision"),
        (["etag", "name"], r"update_mask.paths\[1\] is 'name', which cannot be updated; use etag, revision"),
        (["*"], r"update_mask.paths\[0\] is '\*', which cannot be updated; use etag, revision"),
    ],
    ids=["empty", "unknown", "star"],
)
def test_a_mask_that_names_nothing_to_update_is_refused(paths: list[str], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        changes_from_mask(FieldMask(paths=paths), User(), READERS)
