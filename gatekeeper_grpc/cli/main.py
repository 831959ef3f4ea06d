"""The `gatekeeper` command: client commands, and commands that operate a server."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

import click

from gatekeeper_grpc.cli.client.failures import Failure, usage_of
from gatekeeper_grpc.cli.client.options import CONTEXT, context_option
from gatekeeper_grpc.cli.lazy import Entry, LazyGroup, with_nearest
from gatekeeper_grpc.config.program import with_program

_BEGIN = "\nnext: `gatekeeper serve --demo` starts a server, and prints what to try with it"
# Each function imports what it returns: `gatekeeper --help` needs none of it, and a client command nothing of a server.


def _evaluate() -> click.Command:
    from gatekeeper_grpc.cli.client.evaluate import evaluate

    return evaluate


def _flags() -> click.Command:
    from gatekeeper_grpc.cli.client.flags import flags

    return flags


def _login() -> click.Command:
    from gatekeeper_grpc.cli.client.login import login

    return login


def _logout() -> click.Command:
    from gatekeeper_grpc.cli.client.login import logout

    return logout


def _context() -> click.Command:
    from gatekeeper_grpc.cli.client.context import context

    return context


def _tokens() -> click.Command:
    from gatekeeper_grpc.cli.client.tokens import tokens

    return tokens


def _whoami() -> click.Command:
    from gatekeeper_grpc.cli.client.login import whoami

    return whoami


def _change_password() -> click.Command:
    from gatekeeper_grpc.cli.client.login import change_password

    return change_password


def _client_keys() -> click.Command:
    from gatekeeper_grpc.cli.client.tokens import client_keys

    return client_keys


def _admins() -> click.Command:
    from gatekeeper_grpc.cli.client.admins import admins

    return admins


def _sessions() -> click.Command:
    from gatekeeper_grpc.cli.client.admins import sessions

    return sessions


def _segments() -> click.Command:
    from gatekeeper_grpc.cli.client.segments import segments

    return segments


def _users() -> click.Command:
    from gatekeeper_grpc.cli.client.users import users

    return users


def _erase_user() -> click.Command:
    from gatekeeper_grpc.cli.client.users import erase_user

    return erase_user


def _watch() -> click.Command:
    from gatekeeper_grpc.cli.client.watch import watch

    return watch


def _audit_log() -> click.Command:
    from gatekeeper_grpc.cli.client.audit_log import audit_log

    return audit_log


def _bulk_evaluate() -> click.Command:
    from gatekeeper_grpc.cli.client.bulk_evaluate import bulk_evaluate

    return bulk_evaluate


def _export() -> click.Command:
    from gatekeeper_grpc.cli.client.configuration import export

    return export


def _diff() -> click.Command:
    from gatekeeper_grpc.cli.client.configuration import diff

    return diff


def _apply() -> click.Command:
    from gatekeeper_grpc.cli.client.configuration import apply

    return apply


def _completion() -> click.Command:
    from gatekeeper_grpc.cli.client.completion import completion

    return completion


def _serve() -> click.Command:
    from gatekeeper_grpc.cli.serve import serve

    return serve


def _worker() -> click.Command:
    from gatekeeper_grpc.cli.serve import worker

    return worker


def _config() -> click.Command:
    from gatekeeper_grpc.cli.config import config

    return config


def _db_url() -> click.Command:
    from gatekeeper_grpc.cli.databases import db_url

    return db_url


def _migrate() -> click.Command:
    from gatekeeper_grpc.cli.migrate import migrate

    return migrate


def _grants() -> click.Command:
    from gatekeeper_grpc.cli.grants import grants

    return grants


def _audit() -> click.Command:
    from gatekeeper_grpc.cli.audit import audit

    return audit


def _keys() -> click.Command:
    from gatekeeper_grpc.cli.keys import key_commands

    return key_commands


def _restore_finish() -> click.Command:
    from gatekeeper_grpc.cli.restore import restore_finish

    return restore_finish


def _erasures() -> click.Command:
    from gatekeeper_grpc.cli.restore import erasure_commands

    return erasure_commands


_CLIENT = {
    "evaluate": Entry("Evaluate flags for USER, or for an anonymous user.", _evaluate),
    "bulk-evaluate": Entry(
        "Evaluate flags for all users of FILE, at one revision: .csv, or JSON Lines.", _bulk_evaluate
    ),
    "watch": Entry("Print which flags change, as they change, until Ctrl-C.", _watch),
    "flags": Entry("Read and change flags.", _flags),
    "segments": Entry("Read and change segments: groups of users, by conditions or by name.", _segments),
    "export": Entry("Print all flags and segments with their targets and members, as a file.", _export),
    "diff": Entry("Print what `apply` would change.", _diff),
    "apply": Entry("Make flags, segments and users what FILE says, all of it or nothing.", _apply),
    "users": Entry("Read and change known users: those with stored attributes.", _users),
    "erase-user": Entry("Erase USER_ID everywhere, the audit log included, for good.", _erase_user),
    "audit-log": Entry("Read and verify the audit log through a server.", _audit_log),
    "login": Entry("Log in, and keep the login for later commands.", _login),
    "logout": Entry("End the kept login, on the server too.", _logout),
    "whoami": Entry("Say who you are to the server, and what you may do.", _whoami),
    "change-password": Entry("Change your password; asks for the present one and for the new one.", _change_password),
    "context": Entry("Name servers, and choose the one that commands use.", _context),
    "admins": Entry("Create, list, change and delete admin users.", _admins),
    "sessions": Entry("List and end logins.", _sessions),
    "client-keys": Entry("Make, list and revoke client keys, with which services evaluate flags.", _client_keys),
    "tokens": Entry("Make, list and revoke API tokens, with which tools call AdminService.", _tokens),
    "completion": Entry("Print what completes commands and options in SHELL.", _completion),
}
_OPERATOR = {
    "serve": Entry("Serve until SIGTERM.", _serve),
    "worker": Entry("Serve as one of GATEKEEPER_WORKERS.", _worker, hidden=True),
    "config": Entry("Print every setting with its value and meaning; secrets are masked.", _config),
    "db-url": Entry("Print the DSN of the running embedded database, for psql and for further instances.", _db_url),
    "migrate": Entry(
        "Migrate the schema of GATEKEEPER_MIGRATION_DATABASE_URL, else DATABASE_URL, else the embedded database.",
        _migrate,
    ),
    "grants": Entry("Print the SQL that grants a role the least privileges for `gatekeeper serve`.", _grants),
    "audit": Entry(
        "Verify the audit log, print anchors to keep outside the database, and archive the oldest part.", _audit
    ),
    "keys": Entry("Rotate GATEKEEPER_DATA_KEYS and GATEKEEPER_ERASURE_KEY.", _keys),
    "restore-finish": Entry(
        "Finish a restore: start a new epoch of revisions, then erase again everybody who was erased since the backup.",
        _restore_finish,
    ),
    "erasures": Entry("Work with the ledger of erased people.", _erasures),
}


@click.group(
    cls=LazyGroup,
    sections={"Use flags": _CLIENT, "Operate the server": _OPERATOR},
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 error, 2 usage or invalid value, 3 not found, 4 conflict, 5 credentials, "
    "6 unavailable or too late, 7 refused by the state.",
)
@click.version_option(package_name="gatekeeper-grpc")
@context_option()
@click.pass_context
def gatekeeper(context: click.Context) -> None:
    """Gatekeeper, the self-hosted feature-flag service.

    Commands that operate the server take their settings from the environment: see `gatekeeper config`.
    """
    if (command := context.invoked_subcommand) in _OPERATOR:
        if CONTEXT in context.meta:
            raise click.UsageError(f"{CONTEXT} is for commands that use flags: {command} works on this machine")
        from gatekeeper_grpc.cli.operator_settings import operator_settings

        context.obj = operator_settings(str(command))


def main() -> None:
    """Run the command, and end the process without the interpreter's finalization: gRPC's threads may still run."""
    exit_now(run())


def run() -> int:
    """Run the command; return its exit code. An expected failure is one line on standard error and its exit code."""
    try:
        return gatekeeper.main(standalone_mode=False) or 0
    except Failure as failure:
        return _say(failure)
    except click.ClickException as exc:
        return _refused(exc)
    except UnicodeEncodeError:
        click.echo("gatekeeper: an argument must be UTF-8", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):  # KeyboardInterrupt: a second signal while the first one was handled
        return 130
    except Exception as exc:  # noqa: BLE001 - a failure that is expected, or a bug
        return _failed(exc)


def _refused(exc: click.ClickException) -> int:
    if isinstance(exc, click.exceptions.NoArgsIsHelpError):
        exc.show()
        if exc.ctx.command is gatekeeper:
            click.echo(with_program(_BEGIN), err=True)
        return exc.exit_code
    if isinstance(exc, click.UsageError):
        return _say(usage_of(with_nearest(exc) if isinstance(exc, click.exceptions.NoSuchCommand) else exc))
    click.ClickException(with_program(exc.message)).show()
    return exc.exit_code


def _say(failure: Failure) -> int:
    for line in failure.lines():
        click.echo(with_program(line), err=True)
    return failure.exit_code


def _failed(exc: Exception) -> int:
    from gatekeeper_grpc.config.settings import SettingsError
    from gatekeeper_grpc.domain.errors import GatekeeperError
    from gatekeeper_grpc.embedded import EmbeddedDatabaseError

    if isinstance(exc, SettingsError | GatekeeperError | EmbeddedDatabaseError):
        click.echo(f"gatekeeper: {with_program(str(exc))}", err=True)
    else:  # Reported as the interpreter does it.
        sys.excepthook(type(exc), exc, exc.__traceback__)
    return 1


def exit_now(code: int) -> NoReturn:
    """End the process at once, without the interpreter's finalization.

    Finalization can hang while gRPC's threads exist. On a busy machine, 142 of 172 starts that SIGTERM interrupted hung
    in it until SIGALRM ended the process; without it, none of 1,600 did.
    """
    with suppress(OSError):  # The reader of our output is gone.
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
