"""Where a unit stands in a draw is a contract: alike on every interpreter, and the old buckets in whole per cents."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.draws import hashing
from gatekeeper_grpc.draws.hashing import per_cents_of, position_of

pytestmark = pytest.mark.promise("A6")

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "bucketing.json").read_text(encoding="utf-8"))
VECTORS = [(vector["user_id"].encode(), f":{vector['flag_key']}".encode()) for vector in GOLDEN["vectors"]]
BUCKETS = [vector["bucket"] for vector in GOLDEN["vectors"]]


@pytest.fixture
def without_builtin_md5(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as an interpreter without `_md5` loads it."""
    monkeypatch.setitem(sys.modules, "_md5", None)
    spec = importlib.util.spec_from_file_location("hashing_on_openssl", hashing.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_position_refines_the_bucket_of_every_golden_vector() -> None:
    assert [position_of(unit, salt) // 1_000 for unit, salt in VECTORS] == BUCKETS


@given(unit=st.binary(max_size=300), salt=st.binary(max_size=140))
def test_a_position_is_two_parts_of_the_first_32_bits_of_the_md5(unit: bytes, salt: bytes) -> None:
    number = int(hashlib.md5(unit + salt, usedforsecurity=False).hexdigest()[:8], 16)

    assert position_of(unit, salt) == (number % 100) * 1000 + (number // 100) % 1000


@given(digests=st.lists(st.binary(min_size=16, max_size=16)))
def test_the_per_cents_of_many_digests_are_those_of_each(digests: list[bytes]) -> None:
    assert [*per_cents_of(digests)] == [int.from_bytes(digest[:4], "big") % 100 for digest in digests]


def test_openssl_gives_the_same_positions_where_python_has_no_md5(without_builtin_md5: ModuleType) -> None:
    assert without_builtin_md5.md5.func is hashlib.md5
    assert [without_builtin_md5.position_of(*vector) // 1_000 for vector in VECTORS] == BUCKETS
