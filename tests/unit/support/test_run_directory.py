"""A run of the tests removes what killed ones have left, and nothing of those that still run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.run_directory import make_run_directory

_OTHER_RUN = """
import sys, time
from pathlib import Path
from tests.support.run_directory import make_run_directory
print(make_run_directory(Path(sys.argv[1])), flush=True)
time.sleep(3_600)
"""


@contextmanager
def other_run(parent: Path) -> Iterator[Path]:
    """Another run, with a file in its directory; killed at the end of the block."""
    command = [sys.executable, "-c", _OTHER_RUN, str(parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}) as process:
        assert process.stdout
        made = Path(process.stdout.readline().rstrip())
        (made / "database").touch()
        try:
            yield made
        finally:
            process.kill()


def test_what_a_killed_run_has_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with other_run(tmp_path) as left:
        pass

    made = make_run_directory(tmp_path)

    assert not left.exists()
    assert made.exists()


def test_the_directory_of_a_run_in_progress_stays(tmp_path: Path) -> None:
    with other_run(tmp_path) as others:
        make_run_directory(tmp_path)

        assert [path.name for path in others.iterdir()] == ["database"]
