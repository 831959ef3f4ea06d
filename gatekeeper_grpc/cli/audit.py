"""`gatekeeper audit`: verifies the audit log, prints anchors to keep outside, and archives the oldest part to files."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import click

from gatekeeper_grpc.auth.checkpoints import CheckpointError, key_from_text, verify_checkpoint
from gatekeeper_grpc.cli.databases import opened, owner_dsn, serving_dsn
from gatekeeper_grpc.config.settings import Settings, SettingsError, variable_of
from gatekeeper_grpc.domain.audit import AuditAnchor
from gatekeeper_grpc.domain.audit_verifier import Verification
from gatekeeper_grpc.domain.reconciliation import Comparison
from gatekeeper_grpc.store.audit.archive import AuditArchive, read_archives, verify_archives, verify_with_archives
from gatekeeper_grpc.store.audit.lines import EVENT, read_lines
from gatekeeper_grpc.store.audit.log import AuditStore, read_head
from gatekeeper_grpc.store.audit.reconcile import reconcile as reconciled

_ANCHOR = re.compile(r"(\d{1,18}):([0-9a-f]{64})")


def _anchor(text: str) -> AuditAnchor:
    found = _ANCHOR.fullmatch(text)
    if not found:
        raise click.BadParameter("must be SEQ:HASH, as `gatekeeper audit anchor` prints it")
    return AuditAnchor(seq=int(found[1]), hash=bytes.fromhex(found[2]))


_FOLDER = click.Path(file_okay=False, path_type=Path)
_anchor_option = click.option(
    "--anchor", type=_anchor, metavar="SEQ:HASH", help="An anchor kept outside, which the log must contain."
)


@click.group()
def audit() -> None:
    """Verify the audit log, print anchors to keep outside the database, and archive the oldest part.

    These commands read the database. `gatekeeper audit-log` asks a server.
    """


@audit.command()
@click.pass_obj
def anchor(settings: Settings) -> None:
    """Print the head of the log as SEQ:HASH, to be kept outside the database."""
    with opened(serving_dsn(settings)) as database:
        head = AuditStore(database).head()
    click.echo(f"{head.anchor.seq}:{head.anchor.hash.hex()}")


@audit.command()
@_anchor_option
@click.option("--archives", type=_FOLDER, help="Also verify the archived part in this folder.")
@click.pass_obj
def verify(settings: Settings, anchor: AuditAnchor | None, archives: Path | None) -> None:
    """Compute every hash of the log again; exit with 1 at the first bad entry."""
    with opened(serving_dsn(settings)) as database:
        if archives is None:
            _conclude(AuditStore(database).verify(anchor))
        else:
            _conclude(verify_with_archives(database, read_archives(archives), anchor))


@audit.command()
@click.option(
    "--trust-until",
    "trusted_seq",
    type=click.IntRange(min=0),
    default=0,
    metavar="SEQ",
    help="Do not report again what entries up to this one found changed behind the log.",
)
@click.pass_obj
def reconcile(settings: Settings, trusted_seq: int) -> None:
    """Compare all that is stored with the log; exit with 1 if anything was changed behind it.

    Names each flag, segment, user (by subject id), admin user, client key, API token, and each set of targets or
    members that differs from its last audit entry, or that an entry found changed since the one before. Run
    `gatekeeper audit verify` as well: this command believes the log.
    """
    counts: Counter[str] = Counter()
    with opened(serving_dsn(settings)) as database, database.read() as conn:
        for compared in reconciled(conn, trusted_seq=trusted_seq):
            counts[_outcome(compared)] += 1
            for fault in compared.faults:
                click.echo(f"{compared.resource} {compared.key}: {fault}", err=True)
        head = read_head(conn)
    click.echo(f"reconciled with the log up to entry {head.anchor.seq}: {_summary(counts)}")
    if counts[_DIFFER]:
        sys.exit(1)


_AGREE, _DIFFER = "agree", "differ"


def _outcome(compared: Comparison) -> str:
    if compared.faults:
        return _DIFFER
    return f"not comparable ({compared.not_comparable})" if compared.not_comparable else _AGREE


def _summary(counts: Counter[str]) -> str:
    """Say how many resources agree, differ and cannot be compared: these are neither right nor wrong."""
    shown = sorted(counts.keys() - {_AGREE, _DIFFER})
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in (_AGREE, _DIFFER, *shown))


@audit.command()
@click.option(
    "--from", "first", type=click.IntRange(min=1), default=1, metavar="SEQ", help="The first entry.  [default: 1]"
)
@click.pass_obj
def export(settings: Settings, first: int) -> None:
    """Print the line of each entry from SEQ on, as JSON, with the fields that instances log after the commit."""
    with opened(serving_dsn(settings)) as database, database.read() as conn:
        for line in read_lines(conn, first=first):
            click.echo(json.dumps({"event": EVENT, **line.fields()}))


@audit.command("verify-archives")
@_anchor_option
@click.argument("folder", type=_FOLDER)
def verify_archive_files(anchor: AuditAnchor | None, folder: Path) -> None:
    """Verify archived entries only, without a database."""
    _conclude(verify_archives(read_archives(folder), anchor))


@audit.command()
@click.pass_obj
def checkpoint(settings: Settings) -> None:
    """Print the signed head of the log as JSON, like the response of GetAuditCheckpoint."""
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415 - as below

    # Imported here: protobuf takes a while to import, and no other command needs it.
    from gatekeeper_client.v1.admin_service_pb2 import GetAuditCheckpointResponse  # noqa: PLC0415
    from gatekeeper_grpc.lifecycle.keys import load_audit_signer  # noqa: PLC0415
    from gatekeeper_grpc.wire.audit import checkpoint_to_proto  # noqa: PLC0415

    signer = load_audit_signer(settings)
    if signer is None:
        raise SettingsError(f"{variable_of('audit_signing_key')} is not set: a checkpoint needs it")
    with opened(serving_dsn(settings)) as database:
        signed = signer.sign(AuditStore(database).head())
    click.echo(MessageToJson(GetAuditCheckpointResponse(checkpoint=checkpoint_to_proto(signed))))


@audit.command("verify-checkpoint")
@click.argument("file", type=click.File("rb"))
@click.option("--public-key", required=True, help="The key that you trust, 32 bytes in base64.")
def verify_checkpoint_file(file: Iterable[bytes], public_key: str) -> None:
    """Verify a signed checkpoint in FILE, the JSON of GetAuditCheckpoint, without a database; print its anchor."""
    from google.protobuf.json_format import Parse, ParseError  # noqa: PLC0415 - as above

    from gatekeeper_client.v1.admin_service_pb2 import GetAuditCheckpointResponse  # noqa: PLC0415
    from gatekeeper_grpc.wire.audit import checkpoint_from_proto  # noqa: PLC0415

    try:
        message = Parse(b"".join(file), GetAuditCheckpointResponse())
        kept = checkpoint_from_proto(message.checkpoint)
        verify_checkpoint(kept, key_from_text(public_key))
    except (ParseError, ValueError, CheckpointError) as exc:
        raise click.ClickException(str(exc)) from None
    click.echo(f"{kept.head.anchor.seq}:{kept.head.anchor.hash.hex()}")


@audit.command()
@click.option(
    "--before", type=click.IntRange(min=1), metavar="SEQ", help="Archive partitions that end before this entry."
)
@click.option("--keep-partitions", type=click.IntRange(min=1), metavar="N", help="Keep the N newest partitions in use.")
@click.option("--to", "folder", type=_FOLDER, required=True, help="Folder for the files.")
@click.pass_obj
def archive(settings: Settings, before: int | None, keep_partitions: int | None, folder: Path) -> None:
    """Move the oldest partitions of the log to files, verified by re-reading, and drop them with their documents.

    A partition has a million entries. Needs the role that owns the schema: GATEKEEPER_MIGRATION_DATABASE_URL.
    """
    if (before is None) == (keep_partitions is None):
        raise click.UsageError("give either --before or --keep-partitions")
    with opened(owner_dsn(settings)) as database:
        for archived in AuditArchive(database, folder).move(before=before, keep_partitions=keep_partitions):
            click.echo(f"archived {archived.first_seq} to {archived.last_seq} in {archived.path}")


def _conclude(reports: Iterable[Verification]) -> None:
    """Print the result of a verification; exit with 1 at a fault."""
    *_, last = reports
    if last.faulty is not None:
        click.echo(f"{last.faulty.fault} at entry {last.faulty.seq}: {last.faulty.message}", err=True)
        sys.exit(1)
    counts = f"{last.verified_entries} entries, of which {last.redacted_documents} have a redacted document"
    click.echo(f"verified {counts}; its head is {last.verified.seq}:{last.verified.hash.hex()}")
    if last.verified_subjects or last.incomparable_subjects:
        compared = f"{last.verified_subjects} of {last.verified_subjects + last.incomparable_subjects} people"
        click.echo(f"{compared} are proven to be whom the log met; nothing is proven of the others")
    if last.unaccounted_documents:
        click.echo(
            f"{last.unaccounted_documents} documents are missing, and no erasure in these files accounts for them:"
            " verify together with the database"
        )
