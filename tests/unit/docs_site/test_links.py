"""Links of a page lead to where the site has what they lead to in the repository."""

import pytest

from docs_site.links import links_of, location, rewritten


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("README.md", "index.md"),
        ("CONTRIBUTING.md", "CONTRIBUTING.md"),
        ("docs/operations/audit.md", "operations/audit.md"),
        ("docs/decisions", "decisions/README.md"),
        ("docs/pictures/unary.svg", "pictures/unary.svg"),
        ("protos/gatekeeper/v1", "reference/api/index.md"),
        ("protos/gatekeeper/v1/flag.proto", "reference/api/flag.md"),
        ("docker-compose.yml", "source/docker-compose.yml.txt"),
        ("tests/rpc", ""),
    ],
)
def test_each_kind_of_file_is_found_on_the_site(path: str, there: str) -> None:
    assert location(path) == there


@pytest.mark.parametrize(
    ("page", "link", "on_the_site"),
    [
        ("README.md", "[a](docs/faq.md#b)", "[a](faq.md#b)"),
        (
            "docs/operations/audit.md",
            "[`x`](../../protos/gatekeeper/v1/audit.proto)",
            "[`x`](../reference/api/audit.md)",
        ),
        ("docs/faq.md", "![p](pictures/unary.svg)", "![p](pictures/unary.svg)"),
        ("docs/faq.md", "[a](#b) [c](https://example.com/d.md)", "[a](#b) [c](https://example.com/d.md)"),
        ("docs/faq.md", "[tests](../tests/rpc) and", "tests and"),
        ("docs/faq.md", "[gone](gone.md)", "[gone](gone.md)"),
        ("docs/faq.md", "`[a](../README.md)`", "`[a](../README.md)`"),
        ("docs/faq.md", "```sh\n[a](../README.md)\n```", "```sh\n[a](../README.md)\n```"),
    ],
)
def test_a_link_leads_to_its_target_and_code_is_left_alone(page: str, link: str, on_the_site: str) -> None:
    assert rewritten(page, link) == on_the_site


def test_links_are_listed_as_paths_of_the_repository() -> None:
    assert [*links_of("docs/operations/x.md", "[a](../../Makefile) `[b](c.md)` [d](e.md#f)")] == [
        "Makefile",
        "docs/operations/e.md",
    ]
