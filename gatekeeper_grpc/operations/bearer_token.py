"""The token that `/metrics` asks for."""

import hmac
import re

_VALID = re.compile(r"[!-~]{16,4096}")


class BearerToken:
    """A token that can be replaced while it is asked for. Without one, everybody is admitted.

    Args:
        text: 16 to 4,096 printable ASCII characters without spaces; empty: none.

    Raises:
        ValueError: It is something else; the message repeats nothing of it.
    """

    def __init__(self, text: str = "") -> None:
        self._token = b""
        if text:
            self.use(text)

    def use(self, text: str) -> None:
        """Ask for another token from now on.

        Raises:
            ValueError: As for the constructor.
        """
        if not _VALID.fullmatch(text):
            raise ValueError("must be 16 to 4096 printable ASCII characters without spaces")
        self._token = text.encode()

    def admits(self, authorization: str) -> bool:
        """Return whether the header of a request has the token."""
        scheme, _, token = authorization.partition(" ")
        is_ours = hmac.compare_digest(token.strip().encode(), self._token)
        return not self._token or (scheme.lower() == "bearer" and is_ours)
