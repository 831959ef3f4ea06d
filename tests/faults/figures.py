"""The promised figures, and the allowance for a busy machine. The report shows the measured figures."""

import os

# How long a fault lasts; `FAULT_S=600 make test-faults` makes a record of it.
FAULT_S = float(os.environ.get("FAULT_S", "30"))

# How long an attack lasts; `ATTACK_S=5` while one is written.
ATTACK_S = float(os.environ.get("ATTACK_S", "30"))

LOAD = os.getloadavg()[0] / (os.cpu_count() or 1)
"""How many processes wanted each core before we began."""

# On top of every promise below that is about seconds: two cores also run the clients, the proxies and PostgreSQL, and
# whatever else was there before.
BUSY_S = 1.5 * min(max(1.0, LOAD), 4.0)
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
TOLD_WITHIN_S = 2.0
"""After a change, until the last of thousands of watchers knows."""
WATCHED_P99_FACTOR = 2.0
WATCHED_P99_NOISE_S = 0.005
"""Watched calls may take so much longer than calls without watchers: what is measured is a machine with other work."""
