"""A group of commands that are imported when they are used, so that `--help` is cheap."""

from collections import UserDict
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

# What other tools call it.
_MEANT = {
    "ls": "list",
    "rm": "delete",
    "remove": "delete",
    "show": "get",
    "describe": "get",
    "new": "create",
    "add": "create",
}


class Entry(NamedTuple):
    """A command that is not imported yet."""

    summary: str
    """What its help begins with, for the list of commands."""
    load: Callable[[], click.Command]
    hidden: bool = False


class _Commands(UserDict[str, Any]):
    """Entries by name; a lookup imports the command."""

    def __getitem__(self, name: str) -> click.Command:
        entry: Entry = self.data[name]
        return entry.load()


class LazyGroup(click.Group):
    """A group whose help lists its commands in sections, without importing them.

    Args:
        sections: The commands by name, below the title of their section.
        options: As of `click.Group`.
    """

    def __init__(self, *, sections: Mapping[str, Mapping[str, Entry]], **options: Any) -> None:
        self._sections = sections
        self.entries = {name: entry for section in sections.values() for name, entry in section.items()}
        super().__init__(**options, commands=_Commands(self.entries))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the sections."""
        for title, section in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.summary) for name, entry in section.items() if not entry.hidden])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the names and options that begin so."""
        names = [
            CompletionItem(name, help=entry.summary)
            for name, entry in self.entries.items()
            if name.startswith(incomplete) and not entry.hidden
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


def with_nearest(error: click.exceptions.NoSuchCommand) -> click.UsageError:
    """Return the error of an unknown command with the nearest one that there is."""
    group = error.ctx.command if error.ctx else None
    if not isinstance(group, click.Group) or error.ctx is None:
        return error
    hidden = {name for name, entry in getattr(group, "entries", {}).items() if entry.hidden}
    names = sorted(set(group.list_commands(error.ctx)) - hidden)
    meant = _MEANT.get(error.command_name)
    nearest = [meant] if meant in names else get_close_matches(error.command_name, names, n=1) or _elsewhere(error)
    return click.UsageError(f"{error.message} Did you mean {nearest[0]!r}?", error.ctx) if nearest else error


def _elsewhere(error: click.exceptions.NoSuchCommand) -> list[str]:
    """Return an unknown command with the group that has it, of those with a longer name: `audit` has `audit-log`."""
    root = error.ctx.find_root().command if error.ctx else None
    if error.ctx is None or not isinstance(root, LazyGroup):
        return []
    groups = {name: root.commands[name] for name in root.entries if name.startswith(f"{error.ctx.info_name}-")}
    return [
        f"{name} {error.command_name}"
        for name, group in groups.items()
        if isinstance(group, click.Group) and error.command_name in group.commands
    ]
