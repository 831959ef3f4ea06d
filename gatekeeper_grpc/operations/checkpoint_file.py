"""Keeps the newest checkpoint of the audit log in a file: an anchor that the database cannot reach."""

from pathlib import Path

from google.protobuf.json_format import MessageToJson

from gatekeeper_client.v1.admin_service_pb2 import GetAuditCheckpointResponse
from gatekeeper_grpc.auth.checkpoints import CheckpointSigner
from gatekeeper_grpc.domain.audit import AuditHead
from gatekeeper_grpc.domain.errors import Unavailable
from gatekeeper_grpc.durable_file import replace_file
from gatekeeper_grpc.wire.audit import checkpoint_to_proto

# There is no secret in it, and others are to read it.
_MODE = 0o644


class CheckpointFile:
    """A file with one signed checkpoint, as JSON like the response of GetAuditCheckpoint."""

    def __init__(self, path: Path, signer: CheckpointSigner) -> None:
        self._path = path
        self._signer = signer

    def keep(self, head: AuditHead) -> None:
        """Sign a head, and replace the file.

        Raises:
            Unavailable: The file cannot be written.
        """
        signed = checkpoint_to_proto(self._signer.sign(head))
        text = MessageToJson(GetAuditCheckpointResponse(checkpoint=signed))
        try:
            replace_file(self._path, [f"{text}\n".encode()], mode=_MODE)
        except OSError as exc:
            raise Unavailable(f"the audit checkpoint cannot be written to {self._path}: {exc.strerror}") from exc
