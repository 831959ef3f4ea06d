"""The limits of the contract, and the checks that enforce them.

Every check raises `InvalidArgument`, which names `field`, a proto path such as "flag.key", and what would be right.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable

from gatekeeper_grpc.domain.errors import InvalidArgument

MAX_USER_ID_BYTES = 256
MAX_DESCRIPTION_CHARS = 1_024
MAX_CHANGE_REASON_CHARS = 1_024
MAX_OWNER_CHARS = 256
MAX_USERNAME_CHARS = 128
MAX_CLIENT_NAME_CHARS = 128
MAX_TAGS = 32
MAX_TAG_CHARS = 64
MAX_SEGMENT_TARGETS = 64
MAX_FLAG_KEYS = 1_000
MAX_TARGETS_PER_CALL = 1_000
MAX_MEMBERS_PER_CALL = 1_000
MAX_IDS_PER_STREAM_MESSAGE = 10_000
MAX_CONTEXTS_PER_MESSAGE = 5_000
MAX_ATTRIBUTES_BYTES = 16 * 1024
MAX_ATTRIBUTES_DEPTH = 5
# Over all segments: values of CONTAINS, STARTS_WITH and ENDS_WITH, and stored attribute values that conditions name.
MAX_SCANNED_VALUES = 1_000
MAX_STORED_VALUES = 1_000_000
# Over all segments, and over all flags: an evaluation may test each of them.
MAX_CONDITIONS_IN_ALL = 10_000
MAX_SEGMENT_TARGETS_IN_ALL = 50_000
# CPU: what an evaluation may take at most. A step is one instruction of the interpreter, of which a core runs 30 to 60
# million a second, or 100 pairs of characters that `in` compares; tests/unit/domain/test_evaluation_cost.py counts.
MAX_STEPS_PER_FLAG = 200
MAX_STEPS_PER_SEGMENT_TARGET = 200
MAX_STEPS_PER_CONDITION = 200
MAX_STEPS_PER_ATTRIBUTE_BYTE = 80
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000

# Controls, formats such as bidirectional marks and zero-width characters, and separators of lines.
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp"})
# Fillers, joiners and blanks that Unicode counts as letters, marks or symbols.
_UNSEEN_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_key(field: str, key: str) -> None:
    """Check the key of a flag or segment.

    Raises:
        InvalidArgument: It is malformed.
    """
    if not _KEY.fullmatch(key):
        raise InvalidArgument.of(
            field, "must be 1 to 128 characters of A-Z a-z 0-9 . _ - and start with a letter or digit"
        )


def check_keys(field: str, keys: Collection[str]) -> None:
    """Check a list of keys.

    Raises:
        InvalidArgument: One is malformed; names the first.
    """
    if not all(map(_KEY.fullmatch, keys)):
        for position, key in enumerate(keys):
            check_key(f"{field}[{position}]", key)


def check_user_id(field: str, user_id: str) -> None:
    """Check a user id.

    Raises:
        InvalidArgument: It is not 1 to 256 bytes of UTF-8 without NUL, which PostgreSQL cannot store.
    """
    # A character is at most 4 bytes: most ids are accepted without being encoded.
    fits = 0 < len(user_id) <= MAX_USER_ID_BYTES // 4 or 0 < len(user_id.encode()) <= MAX_USER_ID_BYTES
    if not fits or "\0" in user_id:
        raise InvalidArgument.of(field, f"must be 1 to {MAX_USER_ID_BYTES} bytes of UTF-8 without NUL")


def check_user_ids(field: str, user_ids: Collection[str], *, at_most: int) -> None:
    """Check a list of user ids.

    Raises:
        InvalidArgument: It has not 1 to `at_most` ids, or one is malformed or repeated.
    """
    check_count(field, user_ids, at_least=1, at_most=at_most)
    for position, user_id in enumerate(user_ids):
        check_user_id(f"{field}[{position}]", user_id)
    check_distinct(field, user_ids)


def check_each_visible(field: str, texts: Iterable[str]) -> None:
    """Check ids or names that are being created, as `check_visible` does.

    Raises:
        InvalidArgument: One is not visible.
    """
    for position, text in enumerate(texts):
        check_visible(f"{field}[{position}]", text)


def check_visible(field: str, text: str) -> None:
    """Check an id or a name that is being created; one that is stored may be used whatever it is.

    A list with a byte order mark or with line ends of Windows would name users whom no client ever sends.

    Raises:
        InvalidArgument: It begins or ends with white space, or contains a control, bidirectional, zero-width or other
            character that cannot be seen; names the first.
    """
    # Most are ASCII, and pass without a look at each character.
    if not (text.isascii() and text.isprintable()):
        for position, character in enumerate(text):
            if unicodedata.category(character) in _UNSEEN_CATEGORIES or character in _UNSEEN_LETTERS:
                raise InvalidArgument.of(
                    field, f"must not contain U+{ord(character):04X}, which cannot be seen, as character {position + 1}"
                )
    if text != text.strip():
        raise InvalidArgument.of(field, "must not begin or end with white space")


def check_text(field: str, text: str, *, at_most: int, at_least: int = 0) -> None:
    """Check free text.

    Raises:
        InvalidArgument: It is too short or too long, in characters, or contains NUL.
    """
    if not at_least <= len(text) <= at_most or "\0" in text:
        raise InvalidArgument.of(field, f"must be {at_least} to {at_most} characters without NUL")


def check_count(field: str, items: Collection[object], *, at_most: int, at_least: int = 0) -> None:
    """Check how many items a list has.

    Raises:
        InvalidArgument: There are too few or too many.
    """
    if not at_least <= len(items) <= at_most:
        raise InvalidArgument.of(field, f"must have {at_least} to {at_most} entries, not {len(items)}")


def check_distinct(field: str, items: Collection[str]) -> None:
    """Check that a list repeats no item.

    Raises:
        InvalidArgument: It does; names the first repetition.
    """
    if len(set(items)) == len(items):
        return
    seen: set[str] = set()
    for position, item in enumerate(items):
        if item in seen:
            raise InvalidArgument.of(f"{field}[{position}]", "repeats an earlier entry; each may appear once")
        seen.add(item)
