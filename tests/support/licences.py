"""The licences of what the server needs at run time: `python -m tests.support.licences` names those that do not suit.

With `--notices` it prints the licences and their texts instead, without the embedded PostgreSQL: those of the image.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, distribution
from types import MappingProxyType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ALLOWED = frozenset({"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0"})
# Used as published, in a package of its own that anybody may replace, as the LGPL asks.
EXCEPTIONS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("psycopg", "psycopg-binary", "psycopg-pool"), "LGPL-3.0-only")
)
SERVER = "gatekeeper-grpc"
IMAGE = f"{SERVER}[otel]"
"""What the image has."""
_OWN = {SERVER, "gatekeeper-grpc-client"}
# What metadata from before SPDX expressions says.
_OLDER_NAMES = MappingProxyType(
    {
        "3-Clause BSD License": "BSD-3-Clause",
        "Apache 2": "Apache-2.0",  # async-timeout, which Python below 3.11.3 needs: Debian 12 has 3.11.2
        "Apache Software License": "Apache-2.0",
    }
)
_LICENCE_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|THIRD_PARTY)", re.IGNORECASE)


def needed(package: str) -> dict[str, Distribution]:
    """Return the distributions that a package, such as "name[extra]", needs on this machine, itself included."""
    found: dict[str, Distribution] = {}
    todo = [Requirement(package)]
    while todo:
        requirement = todo.pop()
        installed = found[canonicalize_name(requirement.name)] = distribution(requirement.name)
        todo += [
            inner
            for inner in map(Requirement, installed.requires or [])
            if canonicalize_name(inner.name) not in found and _applies(inner, requirement.extras)
        ]
    return found


def faults(distributions: Mapping[str, Distribution]) -> Iterator[str]:
    """Yield, in words for developers, each licence that does not suit."""
    for name, found in sorted(distributions.items()):
        licence = licence_of(found)
        if not is_allowed(licence) and EXCEPTIONS.get(name) != licence:
            allowed = ", ".join(sorted(ALLOWED))
            yield f"{name} {found.version}: its licence is {licence or 'not stated'}; allowed are {allowed}"


def licence_of(found: Distribution) -> str:
    """Return the SPDX expression of a distribution; empty if its metadata states none."""
    fields = found.metadata
    classifiers = (text.rpartition(" :: ")[2] for text in fields.get_all("Classifier", []) if "License ::" in text)
    stated = fields["License-Expression"] or fields["License"] or next(classifiers, "")
    return _OLDER_NAMES.get(stated, stated)


def is_allowed(expression: str) -> bool:
    """Return whether one of the alternatives of an SPDX expression without brackets consists of allowed licences."""
    return any(ALLOWED.issuperset(alternative.split(" AND ")) for alternative in expression.split(" OR "))


def notices(distributions: Mapping[str, Distribution]) -> Iterator[str]:
    """Yield the name, licence, address and licence texts of each distribution of others."""
    for name, found in sorted(distributions.items()):
        if name not in _OWN:
            yield "\n".join(["=" * 80, f"{name} {found.version}: {licence_of(found)}", _address(found), "=" * 80])
            yield from _texts(found)


def _texts(found: Distribution) -> Iterator[str]:
    for file in found.files or []:
        if ".dist-info" in str(file) and _LICENCE_FILE.match(file.name):
            yield file.read_text(encoding="utf-8")


def _address(found: Distribution) -> str:
    addresses = [text.partition(", ")[2] for text in found.metadata.get_all("Project-URL", [])]
    return next(iter(addresses), found.metadata["Home-page"] or f"https://pypi.org/project/{found.name}")


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})


if __name__ == "__main__":
    if sys.argv[1:] == ["--notices"]:
        print("\n\n".join(notices(needed(IMAGE))))
        sys.exit()
    found = list(faults(needed(f"{SERVER}[embedded,otel]")))
    print(*found, sep="\n", end="\n" * bool(found))
    sys.exit(bool(found))
