"""The references have everything that the protos and the commands have."""

import re
from pathlib import Path

from docs_site.api_reference import api_reference
from docs_site.command_reference import command_reference

ROOT = Path(__file__).parents[3]
PROTOS = sorted((ROOT / "protos" / "gatekeeper" / "v1").glob("*.proto"))
API = dict(api_reference())


def test_each_proto_has_a_page_with_all_its_names() -> None:
    assert {*API} == {"index", *(path.stem for path in PROTOS)}
    for path in PROTOS:
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"^ *(?:message|enum|service|rpc) (\w+)", text, re.MULTILINE)
        assert [name for name in names if not re.search(rf"^##+ (\w+\.)?{name}$", API[path.stem], re.MULTILINE)] == []


def test_the_menu_has_the_page_of_each_proto() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    assert [name for name in API if f"reference/api/{name}.md" not in menu] == []


def test_each_line_of_a_comment_is_in_the_page() -> None:
    for path in PROTOS:
        words = [word for line in re.findall(r"// (.+)", path.read_text(encoding="utf-8")) for word in line.split()]
        page = API[path.stem].replace("\\|", "|").replace("<br>", " ").split()
        assert {*words} <= {*page}, path


def test_each_type_is_a_link_to_where_it_is() -> None:
    assert "repeated [SegmentTarget](flag.md#segmenttarget)" in API["flag"]
    assert (
        "stream of [BulkEvaluateFlagsRequest](evaluation_service.md#bulkevaluateflagsrequest)"
        in (API["evaluation_service"])
    )
    assert "map of string to [EvaluationDetail](evaluation.md#evaluationdetail)" in API["evaluation_service"]


def test_each_command_has_its_section_and_hidden_ones_have_none() -> None:
    page = command_reference()

    assert "\n### gatekeeper flags set-rollout\n" in page
    assert "\n## gatekeeper serve\n" in page
    assert "gatekeeper worker" not in page
    assert "`--dry-run`" in page
    assert "--help` |" not in page
