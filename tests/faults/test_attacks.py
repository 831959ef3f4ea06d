"""Attackers from 127.0.1.x do not take what victims at 127.0.2.x need, and are told so; loopback is not exempt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gatekeeper_grpc.transport.listener import LOOKAHEAD_BYTES, NEW_CALLS
from tests.faults.attacks import BULK, REFLECT
from tests.faults.report import Report
from tests.faults.siege import EDITORS, Siege, Suite, siege
from tests.faults.small_disk import on_small_disk
from tests.faults.victims import FLAG
from tests.support.processes import with_files

pytestmark = pytest.mark.promise("B5", "C1", "F1", "F2", "F5")

_TWIN_S = 8.0
_FILES = 1_024
_CONNECTION_BYTES = 14 << 10
_HANDSHAKE_BYTES = 64 << 10
_TLS_CONNECTIONS_BYTES = _FILES * (48 << 10)
"""What TLS takes of each connection in addition."""
_CALL_BYTES = 15 << 10
"""What a call takes that waits, without its message."""
_UNADMITTED_BYTES = 64 << 20
"""For messages that are not admitted yet."""
_MOST_CALLS = NEW_CALLS.waiting + NEW_CALLS.backlog
"""How many wait for their turn; their messages are among those that are not admitted."""
_OTHER_STREAMS = frozenset({"bulk", "import", "verification"})
_LOCKED = "another session of the database holds a lock"
_EDITORS = {"key": FLAG, "tokens": Siege.editor_tokens}
_FULL = "the disk of the database is full"


def held(path: str, name: str) -> Suite:
    return Suite(
        what=f"60 held {name} streams of one address",
        attack="held",
        options={"path": path, "streams": 60},
        sabotage="one_pool_of_streams",
        twin="pools by trust, and shares of them",
        violated=_OTHER_STREAMS,
    )


def unfinished(mib: int, *, calls: int = 300) -> Suite:
    is_received = mib <= 4  # Above, grpcio refuses the message at its header, and there is nothing to switch off.
    return Suite(
        what=f"{calls:,} unfinished messages of {mib} MiB on {calls // 100} connections",
        promise="C1 F1",
        attack="unfinished",
        options={"calls": calls, "size": (mib << 20) - 1},
        bytes=_UNADMITTED_BYTES,
        tells_when=is_received,
        # Without the mitigation, thousands would take all memory of the machine.
        sabotage="all_messages_at_once" if is_received and calls == 300 else "",
        twin="few messages at once",
        violated=frozenset({"memory"}),
    )


def idle(addresses: int, sabotage: str, twin: str, violated: frozenset[str]) -> Suite:
    return Suite(
        what=f"1,200 idle connections from {addresses} addresses, at {_FILES:,} files soft and hard",
        promise="C1 F1",
        attack="idle",
        options={"connections": 1_200, "addresses": addresses},
        launcher=lambda _folder: with_files(_FILES, _FILES),
        bytes=_FILES * _CONNECTION_BYTES,
        sabotage=sabotage,
        twin=twin,
        violated=violated,
    )


def in_flight(calls: int) -> Suite:
    return Suite(
        what=f"{calls:,} evaluations in flight from one address",
        promise="C1 F2",
        attack="in_flight",
        options={"calls": calls, "addresses": 1},
        bytes=min(calls, _MOST_CALLS) * (LOOKAHEAD_BYTES + _CALL_BYTES),
        sabotage="short_backlog",
        twin="the backlog of calls",
        violated=frozenset({"words"}),
    )


def full_disk(what: str, **options: Any) -> Suite:
    return Suite(
        what=f"{what}, next to {EDITORS} editors",
        promise="B5 F5",
        attack="edit",
        options=_EDITORS,
        launcher=on_small_disk,
        refused={"import": _FULL, "login": _FULL},
        attacker_waits_s=2.0,
        **options,
    )


def with_tls(suite: Suite) -> Suite:
    return replace(suite, what=f"{suite.what}, by TLS", tls=True, bytes=suite.bytes + _TLS_CONNECTIONS_BYTES)


SUITES = {
    "held-bulk": held(BULK, "bulk"),
    "held-reflection": held(REFLECT, "reflection"),
    "unfinished-4-mib": unfinished(4),
    "unfinished-8-mib": unfinished(8),
    # Far more calls than may be pending: some wait for their turn, and are stated apart.
    "unfinished-12000": replace(unfinished(4, calls=12_000), bytes=_UNADMITTED_BYTES + _MOST_CALLS * _CALL_BYTES),
    "body-less": Suite(
        what="100 admin calls a second without a message, of a viewer",
        attack="body_less",
        options={"per_s": 100, "token": Siege.viewer_token},
        sabotage="messages_on_workers",
        twin="waiting for messages without a worker",
        violated=frozenset({"admin read"}),
    ),
    "idle-one-address": idle(
        1,
        "no_connection_gives_way",
        "idle connections that give way",
        frozenset({"evaluation", "admin read", "bulk"}),
    ),
    # Without a descriptor left, the database is away as well.
    "idle-200-addresses": idle(200, "no_connection_cap", "a cap on connections", frozenset({"admin read"})),
    "in-flight-2000": in_flight(2_000),
    "in-flight-4000": in_flight(4_000),
    "in-flight-20000": in_flight(20_000),
    "in-flight-mixed": Suite(
        what="600 calls of four pools in flight from six addresses",
        promise="C1 F2",
        attack="in_flight",
        options={"calls": 600, "addresses": 6, "token": Siege.viewer_token},
        bytes=600 * (LOOKAHEAD_BYTES + _CALL_BYTES),
        # No twin: six addresses are not enough to delay others on a fast machine, whatever the order is.
    ),
    "in-flight-mixed-2000": Suite(
        what="2,000 calls of four pools in flight from 20 addresses",
        promise="C1 F2",
        attack="in_flight",
        options={"calls": 2_000, "addresses": 20, "token": Siege.viewer_token},
        bytes=2_000 * (LOOKAHEAD_BYTES + _CALL_BYTES),
        sabotage="first_come_calls",
        twin="turns of new calls",
        violated=frozenset({"evaluation"}),
    ),
    "foreign-lock": Suite(
        what=f"a foreign session's lock on the head row, next to {EDITORS} editors",
        promise="F5",
        attack="edit",
        options=_EDITORS,
        fault=Siege.head_locked,
        refused={"import": _LOCKED},
        attacker_waits_s=2.0,
        sabotage="patient_with_locks",
        twin="the bound for locks",
        violated=frozenset({"import"}),
    ),
    "tls-held-bulk": with_tls(held(BULK, "bulk")),
    # The attacker encrypts, and is too slow to fill the memory of the twin. The one without TLS shows the mitigation.
    "tls-unfinished-4-mib": with_tls(replace(unfinished(4), sabotage="")),
    "tls-idle-one-address": with_tls(
        idle(
            1,
            "no_connection_gives_way",
            "idle connections that give way, by TLS",
            frozenset({"evaluation", "admin read", "bulk"}),
        )
    ),
    "tls-handshakes": with_tls(
        Suite(
            what=f"1,200 unfinished handshakes from 200 addresses, at {_FILES:,} files soft and hard",
            promise="C1 F1",
            attack="handshakes",
            options={"connections": 1_200, "addresses": 200},
            launcher=lambda _folder: with_files(_FILES, _FILES),
            bytes=_FILES * _HANDSHAKE_BYTES,
            sabotage="no_connection_gives_way",
            twin="idle connections that give way, by TLS",
            violated=frozenset({"evaluation", "admin read", "bulk"}),
        )
    ),
    "tls-in-flight-2000": with_tls(in_flight(2_000)),
    "full-disk": full_disk(
        "a full disk",
        fault=Siege.disk_full,
        sabotage="untranslated_errors",
        twin="the table of database errors",
        violated=frozenset({"import", "login"}),
    ),
    "full-wal": full_disk(
        "a full disk, its WAL as well",
        fault=Siege.wal_full,
        sabotage="no_disk_reserve",
        twin="the reserve on the disk",
        violated=frozenset({"admin read", "verification"}),
    ),
}


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_victims_are_served_and_attackers_told(suite: Suite, tmp_path: Path, report: Report) -> None:
    with siege(suite, tmp_path) as besieged, report.fault(suite.promise, suite.what) as row:
        attacked = besieged.attacked(suite)
        row.recovery_s, row.also = attacked.recovered_s, str(attacked)

    assert attacked.violations() == {}


@pytest.mark.parametrize("suite", [pytest.param(suite, id=name) for name, suite in SUITES.items() if suite.sabotage])
def test_twin_without_the_mitigation_they_are_not(suite: Suite, tmp_path: Path, report: Report) -> None:
    with siege(suite, tmp_path, sabotage=suite.sabotage) as besieged:
        attacked = besieged.attacked(suite, for_s=_TWIN_S)

    violated = attacked.violations()
    assert violated.keys() >= suite.violated, violated
    report.twin(suite.promise, f"{suite.twin} ({suite.what})", f"{sorted(violated)}; {attacked}")
