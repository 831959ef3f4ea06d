"""What `/metrics` shows, and what the document says about it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.waiting import eventually

_PAGE = Path(__file__).parents[2] / "docs" / "operations" / "metrics.md"
_ROW = re.compile(r"^\| `(gatekeeper_\w+)` \| (\w+) \|", re.MULTILINE)
_OF_FLEETS = re.compile("gatekeeper_worker")
_OF_TLS = re.compile("gatekeeper_tls_")


def text_of(ops_port: int) -> str:
    """Scrape a server."""
    with urlopen(f"http://127.0.0.1:{ops_port}/metrics", timeout=60) as response:
        return str(response.read().decode())


def families_of(ops_port: int) -> list[Metric]:
    """Scrape a server, and parse what it shows."""
    return [*text_string_to_metric_families(text_of(ops_port))]


def samples_of(ops_port: int) -> Mapping[str, float]:
    """Scrape a server: values by name and labels."""
    lines = (line.rsplit(" ", 1) for line in text_of(ops_port).splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def documented(*, fleet: bool = False, tls: bool = False) -> dict[str, str]:
    """Types of the metrics by name, as the document has them."""
    rows = dict(_ROW.findall(_PAGE.read_text(encoding="utf-8")))
    left_out = [pattern for pattern, is_shown in ((_OF_FLEETS, fleet), (_OF_TLS, tls)) if not is_shown]
    return {name: kind for name, kind in rows.items() if not any(pattern.match(name) for pattern in left_out)}


def shown(families: list[Metric]) -> dict[str, str]:
    """Types of our metrics by name, as a scrape has them."""
    ours = (family for family in families if family.name.startswith("gatekeeper_"))
    return {family.name + ("_total" if family.type == "counter" else ""): family.type for family in ours}


@contextmanager
def rising(ops_port: int, *names: str, by: float = 1) -> Iterator[None]:
    """Require that each of these samples is higher by `by`, soon after the block."""
    before = samples_of(ops_port)
    yield
    expected = {name: before.get(name, 0) + by for name in names}
    assert eventually(lambda: expected.items() <= samples_of(ops_port).items()), (
        expected,
        {name: samples_of(ops_port).get(name) for name in names},
    )
