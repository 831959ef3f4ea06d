"""The one function of libpq that psycopg does not offer: it makes a refused connection tell its SQLSTATE.

Without it, the reason of a refusal is only in a text, in the language of the server.
"""

import ctypes
import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from psycopg import pq

# Connections are Any here: psycopg documents `pgconn_ptr`, for calls like these, and leaves it out of its protocol.
_VERBOSITY_DEFAULT = 1
_VERBOSITY_SQLSTATE = 3
_SQLSTATE_AT_END = re.compile(r":\s+([0-9A-Z]{5})\s*$", re.MULTILINE)


def tell_sqlstate(pgconn: Any) -> None:
    """Let the error message of a connection that is being made end with a SQLSTATE, if the server sends one."""
    _set_verbosity()(pgconn.pgconn_ptr, _VERBOSITY_SQLSTATE)


def tell_words(pgconn: Any) -> None:
    """Let error messages be as usual again."""
    _set_verbosity()(pgconn.pgconn_ptr, _VERBOSITY_DEFAULT)


def sqlstate_of(message: str) -> str | None:
    """Return the SQLSTATE that an error message after `tell_sqlstate` has; None: it is libpq's own."""
    return next(reversed(_SQLSTATE_AT_END.findall(message)), None)


@cache
def _set_verbosity() -> Callable[[Any, int], object]:
    """Find PQsetErrorVerbosity in the libpq that psycopg has loaded; without it, messages keep their words."""
    try:
        # A symbol of a library is also found through a library that depends on it.
        library = ctypes.CDLL(str(sys.modules[pq.PGconn.__module__].__file__))
        function = library.PQsetErrorVerbosity
    except (OSError, AttributeError):
        return lambda _pgconn, _verbosity: None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    return function
