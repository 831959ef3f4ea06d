"""Files of YAML and JSON: what is written is read as the same, and a fault is named with its line."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper_grpc.cli.client.failures import Failure
from gatekeeper_grpc.cli.client.marked_yaml import read_marked, write_yaml

# What a reader of YAML 1.1 or of 1.2 takes for something else when it is not quoted.
ODD = [
    "on",
    "no",
    "1e3",
    "1_000",
    "2020-01-01",
    "0o17",
    "017",
    "~",
    "null",
    "",
    "true",
    "=",
    "<<",
    "1:30",
    ".inf",
    "- a",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(ODD)
DOCUMENTS = st.recursive(
    TEXTS | st.booleans() | st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(document=st.dictionaries(TEXTS, DOCUMENTS, max_size=4))
def test_what_is_written_is_read_as_the_same(document: dict[str, Any]) -> None:
    assert read_marked(write_yaml(document), "file").plain() == document


@given(texts=st.lists(TEXTS, min_size=1))
def test_a_reader_of_yaml_1_1_sees_the_same_texts(texts: list[str]) -> None:
    assert yaml.safe_load(write_yaml(texts)) == texts


@pytest.mark.parametrize("text", ["1e3", "0o17"])
def test_twin_a_plain_writer_leaves_texts_that_yaml_1_2_takes_for_numbers(text: str) -> None:
    assert read_marked(yaml.safe_dump([text]), "file").plain() != [text]


@pytest.mark.parametrize("how", [{}, {"indent": 1}, {"indent": "\t"}, {"ensure_ascii": False}])
@given(document=st.dictionaries(TEXTS, DOCUMENTS, max_size=4))
def test_json_is_read_as_what_it_is(how: dict[str, Any], document: dict[str, Any]) -> None:
    assert read_marked(json.dumps(document, **how), "file").plain() == document


def test_words_and_dates_are_texts_and_numbers_are_numbers() -> None:
    assert read_marked("[on, no, 2020-01-01, 1e3, 0x1f, true, ~]", "file").plain() == [
        *("on", "no", "2020-01-01"),
        *(1000.0, 31, True, None),
    ]


def test_each_value_knows_its_line() -> None:
    root = read_marked("a:\n- b\n- c: 1\n  d:\n    e: 2\n", "file")

    assert isinstance(root.value, dict)
    a = root.value["a"]
    assert isinstance(a.value, list)
    second = a.value[1]
    assert isinstance(second.value, dict)
    assert (a.line, a.value[0].line, second.line, second.value["d"].line) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("a: 1\na: 2\n", 2, "'a' stands here twice"),
        ("a: &x [1]\nb: *x\n", 2, "an alias is used"),
        ("a: 1\nb: !!python/name:os.system x\n", 2, "is no type of JSON"),
        ("a: 1\nb: !!timestamp 2020-01-01\n", 2, "is no type of JSON"),
        ("a: 1\n? [b]\n: 2\n", 2, "a name must be text"),
        ("a: 1\nb: [1\n", 3, "is no YAML or JSON"),
        ("a: " + "[" * 100 + "]" * 100, 1, "it is nested too deeply"),
    ],
)
def test_a_fault_is_named_with_its_line(text: str, line: int, complaint: str) -> None:
    with pytest.raises(Failure) as raised:
        read_marked(text, "file")

    assert (str(raised.value).startswith(f"file:{line}: "), complaint in str(raised.value)) == (True, True)


def test_a_file_without_anything_is_an_empty_mapping() -> None:
    assert read_marked("# nothing\n", "file").plain() == {}
