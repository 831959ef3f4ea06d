"""Order of SemVer versions and RFC 3339 times: each becomes a key that Python compares.

Digits are compared as text, never converted: neither a long version number nor a long fraction costs CPU or precision.
"""

import re
from datetime import date
from typing import TypeAlias

from gatekeeper_grpc.domain.attribute import JsonValue, text_of

# Condition values are at most this long; a longer attribute must not cost more CPU.
_MAX_CHARS = 256

# Compares as the number does, given no leading zeros.
Digits: TypeAlias = tuple[int, str]
Identifier: TypeAlias = tuple[bool, int, str]
Precedence: TypeAlias = tuple[Digits, Digits, Digits, bool, tuple[Identifier, ...]]

# UTC minute, second, fraction of it. Offsets are whole minutes, so the second is the same everywhere.
Instant: TypeAlias = tuple[int, str, str]

_NUMBER = "0|[1-9][0-9]*"
_PRERELEASE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_BUILD = "[0-9A-Za-z-]+"
_SEMVER = re.compile(
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_PRERELEASE}(?:\.{_PRERELEASE})*))?(?:\+{_BUILD}(?:\.{_BUILD})*)?"
)

_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(?:\.([0-9]+))?"
    r"([Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_MINUTES_PER_DAY = 24 * 60
_BAD_TIME = "must be an RFC 3339 time with an offset, e.g. 2026-01-31T12:00:00Z"


def semver_precedence(value: JsonValue) -> Precedence:
    """Return a key that orders versions by SemVer precedence; build metadata does not count.

    Args:
        value: Text like ``1.4.0-rc.1+build.7``, at most 256 characters; no leading ``v``, no part missing.

    Raises:
        ValueError: It is not a version; says what would be right.

    Source: SemVer 2.0.0, items 9 to 11.
    """
    match = _fullmatch(_SEMVER, value)
    if match is None:
        raise ValueError("must be a SemVer 2.0.0 version, e.g. 1.4.0 or 1.4.0-rc.1")
    major, minor, patch, prerelease = match.groups()
    identifiers = tuple(_identifier(part) for part in prerelease.split(".")) if prerelease else ()
    # A release comes after all its pre-releases. Of two equal pre-releases, the one with more identifiers comes later.
    return _digits(major), _digits(minor), _digits(patch), prerelease is None, identifiers


def _digits(number: str) -> Digits:
    return len(number), number


def _identifier(part: str) -> Identifier:
    """Return a key: numeric identifiers come before all others and compare as numbers, the others by ASCII."""
    return (False, len(part), part) if part.isdigit() else (True, 0, part)


def instant(value: JsonValue) -> Instant:
    """Return a key that orders times as instants, whatever their offsets and to the last digit of their fractions.

    A leap second (``:60``) is accepted in the last minute of a UTC day and lies between ``:59`` and the next day;
    whether one was inserted on that day is not checked. The offset ``-00:00`` counts as UTC.

    Args:
        value: Text like ``2026-01-31T12:00:00.5+01:00``, years 0001 to 9999, at most 256 characters; ``t`` and ``z``
            may be lower case, a space instead of the ``T`` is refused.

    Raises:
        ValueError: It is not such a time; says what would be right.

    Source: RFC 3339, section 5.6; leap seconds, appendix D.
    """
    match = _fullmatch(_RFC3339, value)
    if match is None:
        raise ValueError(_BAD_TIME)
    day, hour, minute, second, fraction, offset = match.groups()
    utc_minute = _first_minute(day) + int(hour) * 60 + int(minute) - _offset_minutes(offset)
    if second == "60" and utc_minute % _MINUTES_PER_DAY != _MINUTES_PER_DAY - 1:
        raise ValueError("must have second 60 only in the last minute of a UTC day")
    return utc_minute, second, (fraction or "").rstrip("0")


def _first_minute(day: str) -> int:
    try:
        return date.fromisoformat(day).toordinal() * _MINUTES_PER_DAY
    except ValueError:
        raise ValueError(_BAD_TIME) from None


def _offset_minutes(offset: str) -> int:
    if offset in "Zz":
        return 0
    minutes = int(offset[1:3]) * 60 + int(offset[4:])
    return -minutes if offset[0] == "-" else minutes


def _fullmatch(pattern: re.Pattern[str], value: JsonValue) -> re.Match[str] | None:
    text = text_of(value)
    return pattern.fullmatch(text) if len(text) <= _MAX_CHARS else None
