"""The flags that all servers of `bench.peers` have (`bench.peers.flags`)."""

from collections import Counter

import pytest

from bench.peers.flags import Flag, Kind, User, flags_of

SWISS_NAMED, GERMAN_NAMED, SWISS, GERMAN = User(0), User(1), User(20), User(21)


def test_of_twenty_flags_each_kind_has_its_share() -> None:
    kinds = Counter(flag.kind for flag in flags_of(1_000))

    shares = {Kind.ROLLOUT: 10, Kind.ON: 2, Kind.OFF: 1, Kind.DISABLED: 1, Kind.NAMED: 3, Kind.COUNTRY: 3}
    assert kinds == {kind: share * 50 for kind, share in shares.items()}


def test_every_user_has_a_country_and_a_plan() -> None:
    assert SWISS.attributes == {"country": "CH", "plan": "free"}
    assert GERMAN.attributes == {"country": "DE", "plan": "pro"}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Kind.ROLLOUT, [None, None, None, None]),
        (Kind.ON, [True, True, True, True]),
        (Kind.OFF, [False, False, False, False]),
        (Kind.DISABLED, [False, False, False, False]),
        (Kind.NAMED, [True, True, False, False]),
        (Kind.COUNTRY, [True, None, True, None]),
    ],
)
def test_a_value_is_expected_unless_a_draw_decides(kind: Kind, values: list[bool | None]) -> None:
    users = (SWISS_NAMED, GERMAN_NAMED, SWISS, GERMAN)

    assert [Flag("flag", kind).value_for(user) for user in users] == values
