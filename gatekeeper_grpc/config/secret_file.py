"""Reads the file of a secret: small, whole, and without a word of it in any error."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

SUFFIX = "_FILE"
"""What the name of a secret's variable ends with, if it names a file."""
MAX_BYTES = 65_536
_NO_REGULAR_FILE = "must be a regular file, or a link to one"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretFile:
    """The file of one secret."""

    variable: str
    """The variable that names the file, such as REDIS_URL_FILE."""
    path: Path

    def read(self) -> str:
        """Return the secret: the text of the file without line ends at its end.

        Raises:
            ValueError: The file cannot be used. The message says why, after the variable and the path, and repeats
                nothing of the content.
        """
        try:
            return _text(_content(self.path))
        except OSError as exc:
            raise ValueError(self.fault(f"cannot be read: {exc.strerror}")) from None
        except ValueError as exc:
            raise ValueError(self.fault(str(exc))) from None

    def fault(self, words: str) -> str:
        """Say what is wrong with the file."""
        return f"{self.variable}: '{self.path}' {words}"


def _content(path: Path) -> bytes:
    # NONBLOCK: to open a pipe would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError(_NO_REGULAR_FILE)
        return os.read(descriptor, MAX_BYTES + 1)
    finally:
        os.close(descriptor)


def _text(content: bytes) -> str:
    if len(content) > MAX_BYTES:
        raise ValueError(f"must have at most {MAX_BYTES} bytes")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8") from None
    if not text.strip() or "\0" in text:
        raise ValueError("must not be empty" if not text.strip() else "must have no NUL")
    return text
