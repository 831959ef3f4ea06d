"""Files that are replaced as a whole: after a crash, a file has its old content or all of the new."""

import os
from collections.abc import Iterable
from pathlib import Path


def draft_of(path: Path) -> Path:
    """Return the path at which the next content of a file is written; left behind only by a killed process."""
    return path.with_name(f".{path.name}.new")


def replace_file(path: Path, pieces: Iterable[bytes], *, mode: int = 0o600) -> None:
    """Replace the content of a file, atomically and durably; after a failure the old content is still there.

    Args:
        path: The file; only one process may write it at a time.
        pieces: The new content.
        mode: The mode of the new file, as the umask restricts it.
    """
    draft = draft_of(path)
    draft.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
