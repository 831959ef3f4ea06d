"""Floods of logins with wrong passwords from 127.x.1.x keep nobody out at 127.0.2.x, whether seen before or not."""

from pathlib import Path

import pytest

from tests.faults.figures import ATTACK_S
from tests.faults.newcomers import Newcomers
from tests.faults.report import Report
from tests.faults.siege import Attacked, Suite, siege

pytestmark = pytest.mark.promise("C3")

_TWIN_S = 8.0
_MANY = 40
"""More than one address may have in the queue, and less than all may."""
# As it ships; the processes of other tests hash at a lower cost.
_SETTINGS = ("env", "GATEKEEPER_BCRYPT_COST=12")

FLOODS = [
    pytest.param(flying, networks, neighbours, id=f"{flying}-of-{name}")
    for name, networks, neighbours in (("one-address", 1, 1), ("one-network", 1, 250), ("many-networks", 250, 1))
    for flying in (12, _MANY)
]


def flood(newcomers: Newcomers, *, flying: int, networks: int, neighbours: int) -> Suite:
    return Suite(
        what=f"{flying} logins in flight from {networks} networks of {neighbours} addresses",
        attack="logins",
        options={"flying": flying, "networks": networks, "neighbours": neighbours},
        fault=newcomers.arriving,
        launcher=lambda _folder: _SETTINGS,
        sabotage="first_come_logins",
        twin="turns of logins",
        violated=frozenset(),
    )


def attacked(suite: Suite, folder: Path, *, sabotage: str = "", for_s: float = ATTACK_S) -> Attacked:
    with siege(suite, folder, sabotage=sabotage) as besieged:
        return besieged.attacked(suite, for_s=for_s)


@pytest.mark.parametrize(("flying", "networks", "neighbours"), FLOODS)
def test_a_flood_of_logins_keeps_nobody_out(
    flying: int, networks: int, neighbours: int, tmp_path: Path, report: Report
) -> None:
    newcomers = Newcomers()
    suite = flood(newcomers, flying=flying, networks=networks, neighbours=neighbours)
    with report.fault("C3", suite.what) as row:
        seen = attacked(suite, tmp_path)
        row.also = f"{seen}; {newcomers}"

    assert seen.violations() == {}
    assert newcomers.are_served, str(newcomers)
    is_refused = flying == _MANY and networks * neighbours == 1
    assert seen.attacker["retry_info"] > 0 or not is_refused


@pytest.mark.parametrize(("flying", "networks", "neighbours"), FLOODS)
def test_twin_first_come_first_served_it_does(
    flying: int, networks: int, neighbours: int, tmp_path: Path, report: Report
) -> None:
    newcomers = Newcomers()
    suite = flood(newcomers, flying=flying, networks=networks, neighbours=neighbours)
    seen = attacked(suite, tmp_path, sabotage=suite.sabotage, for_s=_TWIN_S)

    assert not newcomers.are_served, str(newcomers)
    report.twin("C3", f"{suite.twin} ({suite.what})", f"{newcomers}; {seen}")
