"""Files of users: what is read of them, and from where on."""

import io
from itertools import islice

import click
import pytest

from gatekeeper_grpc.cli.client.bulk_rows import CSV, JSONL, users_in

ROWS = {CSV: "user_id,age\nann,1\nben,2\ncy,3\n", JSONL: '{"user_id": "ann"}\n{"user_id": "ben"}\n{"user_id": "cy"}\n'}


def named(text: str) -> io.TextIOWrapper:
    file = io.TextIOWrapper(io.BytesIO(text.encode()))
    file.buffer.name = "users"
    return file


@pytest.mark.parametrize("form", [CSV, JSONL])
def test_skipped_users_are_those_at_the_beginning(form: str) -> None:
    found = [[user for user, _ in users_in(named(ROWS[form]), form, skipped=skipped)] for skipped in range(5)]

    assert found == [["ann", "ben", "cy"], ["ben", "cy"], ["cy"], [], []]


@pytest.mark.parametrize(("form", "line"), [(CSV, 4), (JSONL, 3)])
def test_a_bad_line_is_named_by_its_number_in_the_file(form: str, line: int) -> None:
    text = ROWS[form].replace("cy,3", "cy,3,4").replace('{"user_id": "cy"}', "{")

    with pytest.raises(click.UsageError, match=f"users, line {line}: must have a user_id"):
        list(users_in(named(text), form, skipped=1))


def test_skipped_lines_are_not_read_as_users() -> None:
    """A run that goes on checks nothing twice: skipping a million users takes a moment."""
    text = ROWS[JSONL].replace('{"user_id": "ann"}', "no user")

    assert [user for user, _ in islice(users_in(named(text), JSONL, skipped=1), 1)] == ["ben"]
