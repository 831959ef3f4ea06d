"""The figures that are promised, and how much a busy machine is forgiven. The report shows what was measured."""

import os

# How long a fault lasts; `FAULT_S=600 make test-faults` makes a record of it.
FAULT_S = float(os.environ.get("FAULT_S", "30"))

# On top of every promise below that is about seconds: two cores also run the clients, the proxies and PostgreSQL.
BUSY_S = 1.5
# A figure of milliseconds is spoiled by whatever else runs: the best of so many rounds counts.
ROUNDS = 3

BUS_ALIVE_P99_S = 0.1
BUS_DEAD_S = 1.0
"""Beyond the poll interval."""
ADMIN_FAILS_WITHIN_S = 1.0
RECOVERS_WITHIN_S = 2.0
COLD_START_ANSWERS_WITHIN_S = 2.0
EXITS_WITHIN_S = 1.0
"""Beyond the drain and grace periods."""

KILLS = 20
# An evaluation that takes longer counts as failed.
EVALUATION_DEADLINE_S = 2.0
