"""Contexts: kept by name, one of them in use."""

from pathlib import Path

import pytest

from gatekeeper_grpc.cli.client.contexts import Context, Contexts
from gatekeeper_grpc.cli.client.failures import Failure

PROD = Context(server="https://flags.example.com", tls_ca="/etc/ca.pem")
TEST = Context(server="127.0.0.1:50051")


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    contexts = Contexts(tmp_path / "gatekeeper")
    contexts.set("prod", PROD)
    contexts.set("test", TEST)
    return contexts


def test_contexts_are_kept_by_name_and_none_is_in_use_by_itself(contexts: Contexts, tmp_path: Path) -> None:
    again = Contexts(tmp_path / "gatekeeper")

    assert (again.all(), again.find("prod"), again.in_use) == ({"prod": PROD, "test": TEST}, PROD, "")
    assert Contexts(tmp_path / "other").all() == {}


def test_the_context_in_use_stays_until_another_one_is(contexts: Contexts) -> None:
    assert contexts.use("prod") == PROD
    contexts.set("test", PROD)

    assert contexts.in_use == "prod"

    contexts.use("test")

    assert contexts.in_use == "test"


def test_of_a_deleted_context_nothing_is_left_and_none_is_in_use(contexts: Contexts) -> None:
    contexts.use("prod")

    contexts.delete("test")

    assert (contexts.in_use, [*contexts.all()]) == ("prod", ["prod"])

    contexts.delete("prod")

    assert (contexts.in_use, contexts.all()) == ("", {})


@pytest.mark.parametrize("act", [Contexts.find, Contexts.use, Contexts.delete])
def test_an_unknown_name_is_answered_with_the_nearest(act: object, contexts: Contexts) -> None:
    assert callable(act)
    with pytest.raises(Failure, match="no context is called 'prd': did you mean 'prod'"):
        act(contexts, "prd")
