"""The rollout hash is a contract: the same slot in every process and release, ramps that never take a flag away."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper_grpc.domain.bucketing import BUCKETS, bucket
from gatekeeper_grpc.domain.evaluation import EvaluationContext
from gatekeeper_grpc.domain.snapshot import Snapshot
from tests.support.flags import flag

pytestmark = pytest.mark.promise("A6")

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "bucketing.json").read_text(encoding="utf-8"))
VECTORS = [(vector["user_id"], vector["flag_key"]) for vector in GOLDEN["vectors"]]
SLOTS = [vector["bucket"] for vector in GOLDEN["vectors"]]

percentages = st.integers(0, 100)
user_ids = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=20)


def test_every_golden_vector_has_its_slot() -> None:
    assert [bucket(user_id, flag_key) for user_id, flag_key in VECTORS] == SLOTS


@pytest.mark.parametrize("ramp", GOLDEN["aggregates"], ids=lambda ramp: f"{ramp['rollout_percentage']} per cent")
def test_a_golden_ramp_reaches_exactly_its_users(ramp: dict[str, Any]) -> None:
    users = [ramp["user_id_format"].format(i=ramp["first"] + number) for number in range(ramp["count"])]

    assert sum(bucket(user, ramp["flag_key"]) < ramp["rollout_percentage"] for user in users) == ramp["users_on"]


_PRINT_SLOTS = """
import json, sys
from gatekeeper_grpc.domain.bucketing import bucket
print([bucket(user_id, flag_key) for user_id, flag_key in json.load(sys.stdin)])
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "4294967295"])
def test_a_process_with_another_hash_seed_gives_the_same_slots(hash_seed: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-c", _PRINT_SLOTS],
        input=json.dumps(VECTORS),
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert json.loads(printed) == SLOTS


def users_on(users: set[str], *, rollout_percentage: int) -> set[str]:
    """The users for whom a flag at this rollout is on."""
    ramp = flag("ramp", enabled=True, rollout_percentage=rollout_percentage)
    snapshot = Snapshot.build(revision=1, flags=[ramp])
    plans = snapshot.select(["ramp"]).plans
    return {user for user in users if snapshot.evaluate(plans, EvaluationContext(user_id=user))[0].value}


@settings(max_examples=50)
@given(users=st.sets(user_ids, max_size=30), one=percentages, other=percentages)
def test_raising_a_rollout_removes_nobody_and_lowering_it_the_top_buckets(
    users: set[str], one: int, other: int
) -> None:
    low, high = sorted((one, other))

    lost = users_on(users, rollout_percentage=high) - users_on(users, rollout_percentage=low)

    assert users_on(users, rollout_percentage=low) <= users_on(users, rollout_percentage=high)
    assert lost == {user for user in users if low <= bucket(user, "ramp") < high}


@given(user_id=user_ids, flag_key=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True))
def test_a_slot_is_the_first_32_bits_of_the_md5_modulo_100(user_id: str, flag_key: str) -> None:
    digest = hashlib.md5(f"{user_id}:{flag_key}".encode(), usedforsecurity=False).hexdigest()

    assert bucket(user_id, flag_key) == int(digest[:8], 16) % 100


def test_users_spread_evenly_over_the_slots() -> None:
    slots = Counter(bucket(f"user-{number}", "new_checkout") for number in range(100_000))
    expected = 100_000 / BUCKETS

    chi_squared = sum((slots[slot] - expected) ** 2 / expected for slot in range(BUCKETS))

    assert chi_squared < 148.2  # one in a thousand truly uniform samples is further off


def test_being_early_in_one_rollout_says_nothing_about_another() -> None:
    users = [f"user-{number}" for number in range(100_000)]

    early_in_both = sum(bucket(user, "search") < 10 and bucket(user, "checkout") < 10 for user in users)

    assert early_in_both == pytest.approx(1_000, abs=100)
