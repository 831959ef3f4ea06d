"""Contexts: servers with names, one of which commands use unless they name another."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gatekeeper_grpc.cli.client.failures import NOT_FOUND, Failure
from gatekeeper_grpc.cli.client.own_files import OwnFile, own_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """How to reach a server. No secret is in it: the login is kept elsewhere."""

    server: str
    """As --server has it."""
    tls_ca: str = ""
    """A file, as the following: absolute, or empty."""
    client_cert: str = ""
    client_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    in_use: str = ""
    contexts: Mapping[str, Context] = field(default_factory=dict)


class Contexts:
    """The kept contexts.

    Args:
        folder: Where they are kept; made, mode 0700, with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._file = OwnFile(folder, "contexts", kind="contexts", instead="GATEKEEPER_SERVER")

    @classmethod
    def of_user(cls) -> "Contexts":
        """Return those of the user who runs this."""
        return cls(own_folder())

    def all(self) -> Mapping[str, Context]:
        """Return them by name."""
        return self._read().contexts

    @property
    def in_use(self) -> str:
        """The name of the one that commands use; empty: none."""
        return self._read().in_use

    def find(self, name: str) -> Context:
        """Return the context of a name.

        Raises:
            Failure: There is none.
        """
        return _found(self._read(), name)

    def set(self, name: str, context: Context) -> None:
        """Keep a context, in place of an earlier one of this name."""
        with self._file.locked():
            kept = self._read()
            self._write(kept.in_use, {**kept.contexts, name: context})

    def use(self, name: str) -> Context:
        """Have commands use a context, and return it.

        Raises:
            Failure: There is none of this name.
        """
        with self._file.locked():
            kept = self._read()
            found = _found(kept, name)
            self._write(name, kept.contexts)
        return found

    def delete(self, name: str) -> None:
        """Keep a context no longer; if it is in use, none is from now on.

        Raises:
            Failure: There is none of this name.
        """
        with self._file.locked():
            kept = self._read()
            _found(kept, name)
            others = {other: context for other, context in kept.contexts.items() if other != name}
            self._write("" if kept.in_use == name else kept.in_use, others)

    def _read(self) -> _Kept:
        return self._file.read(_kept) or _Kept()

    def _write(self, in_use: str, contexts: Mapping[str, Context]) -> None:
        documents = {name: asdict(context) for name, context in sorted(contexts.items())}
        self._file.write({"in_use": in_use, "contexts": documents})


def _kept(document: Any) -> _Kept:
    contexts = {name: Context(**fields) for name, fields in document["contexts"].items()}
    return _Kept(in_use=document["in_use"], contexts=contexts)


def _found(kept: _Kept, name: str) -> Context:
    if name in kept.contexts:
        return kept.contexts[name]
    nearest = get_close_matches(name, kept.contexts, n=1)
    meant = f": did you mean {nearest[0]!r}?" if nearest else ""
    raise Failure(
        f"no context is called {name!r}{meant}", NOT_FOUND, hint="`gatekeeper context list` shows all contexts"
    )
