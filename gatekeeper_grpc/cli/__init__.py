"""The `gatekeeper` command."""

import signal
import sys

if sys.argv[1:2] == ["serve"]:
    # By default it ends the process. `lifecycle/process.py` answers it, and until then there is much to import. Before
    # this line comes the start of the interpreter, in which nobody can ask for anything else.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
