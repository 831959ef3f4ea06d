"""What `bench.peers` takes for a right answer (`bench.peers.checks`)."""

import pytest

from bench.peers.checks import ENOUGH_DRAWS, Tally, WrongAnswer
from bench.peers.flags import Flag, Kind, User, flags_of

FLAGS = flags_of(20)
NAMED, STRANGER = User(0), User(21)


def right(user: User, *, draw: bool) -> dict[str, bool]:
    values = {flag.key: flag.value_for(user) for flag in FLAGS}
    return {key: draw if value is None else value for key, value in values.items()}


def test_right_answers_are_counted() -> None:
    tally = Tally()

    tally.add(FLAGS, NAMED, right(NAMED, draw=True))
    tally.add(FLAGS, STRANGER, right(STRANGER, draw=False))

    assert (tally.answers, tally.draws, tally.trues, tally.share) == (2, 20, 10, 0.5)


def test_a_flag_that_is_left_out_is_not_true() -> None:
    values = {key: value for key, value in right(STRANGER, draw=True).items() if value}

    Tally().add(FLAGS, STRANGER, values)


@pytest.mark.parametrize("kind", [Kind.ON, Kind.OFF, Kind.DISABLED, Kind.NAMED])
def test_a_wrong_value_is_refused(kind: Kind) -> None:
    flag = Flag("flag", kind)

    with pytest.raises(WrongAnswer, match=f"flag \\({kind.value}\\) is"):
        Tally().add([flag], STRANGER, {"flag": not flag.value_for(STRANGER)})


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(WrongAnswer, match="is False"):
        Tally().add(FLAGS, STRANGER, {})


def test_a_flag_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(WrongAnswer, match="such as flag-x"):
        Tally().add(FLAGS, STRANGER, right(STRANGER, draw=True) | {"flag-x": True})


@pytest.mark.parametrize("trues", [ENOUGH_DRAWS * 2 // 5, ENOUGH_DRAWS // 2, ENOUGH_DRAWS * 3 // 5])
def test_a_share_near_one_half_is_fair(trues: int) -> None:
    Tally(draws=ENOUGH_DRAWS, trues=trues).judge()


@pytest.mark.parametrize("trues", [0, ENOUGH_DRAWS * 2 // 5 - 1, ENOUGH_DRAWS * 3 // 5 + 1, ENOUGH_DRAWS])
def test_another_share_is_refused(trues: int) -> None:
    with pytest.raises(WrongAnswer, match="of 200 draws"):
        Tally(draws=ENOUGH_DRAWS, trues=trues).judge()


def test_few_draws_are_not_judged() -> None:
    Tally(draws=ENOUGH_DRAWS - 1).judge()
