"""Racing editors lose no update: `python -m bench.lost_updates [updates] [editors]`.

All editors read a flag and update it with its etag at the same time, until `updates` updates were attempted. Every
acknowledged update must be a step of the flag's version chain, and the audit log must verify as one chain.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from bench.processes import Instance, Metadata, log_in, serving
from gatekeeper_client.v1 import admin_service_pb2 as admin
from gatekeeper_client.v1 import flag_pb2
from gatekeeper_client.v1.admin_service_pb2_grpc import AdminServiceStub

KEY = "contended"


def edit(instance: Instance, metadata: Metadata, attempts: int, counts: dict[str, int], lock: threading.Lock) -> None:
    """Read and update `attempts` times; counts outcomes by status."""
    with instance.channel() as channel:
        flags = AdminServiceStub(channel)
        for _ in range(attempts):
            outcome = _read_and_update(flags, metadata)
            with lock:
                counts[outcome] = counts.get(outcome, 0) + 1


def _read_and_update(flags: AdminServiceStub, metadata: Metadata) -> str:
    try:
        flag = flags.GetFlag(admin.GetFlagRequest(key=KEY), metadata=metadata).flag
        counted = flag_pb2.Flag(key=KEY, etag=flag.etag, description=str(int(flag.description) + 1))
        request = admin.UpdateFlagRequest(flag=counted, update_mask=FieldMask(paths=["description"]))
        flags.UpdateFlag(request, metadata=metadata)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def main(updates: int = 10_000, editors: int = 64) -> None:
    """Run the race and print the counts."""
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as instance:
        metadata, lock = log_in(instance), threading.Lock()
        with instance.channel() as channel:
            flags = AdminServiceStub(channel)
            flag = flag_pb2.Flag(key=KEY, description="0")
            flags.CreateFlag(admin.CreateFlagRequest(flag=flag), metadata=metadata)
            began = time.perf_counter()
            threads = [
                threading.Thread(target=edit, args=(instance, metadata, -(-updates // editors), counts, lock))
                for _ in range(editors)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took_s = time.perf_counter() - began
            steps = int(flags.GetFlag(admin.GetFlagRequest(key=KEY), metadata=metadata).flag.description)
            *_, verified = flags.VerifyAuditLog(admin.VerifyAuditLogRequest(), metadata=metadata)
    print(f"  {sum(counts.values())} updates by {editors} editors in {took_s:.0f} s: {counts}")
    print(f"  version steps {steps}, acknowledged {counts['OK']}: {'none lost' if steps == counts['OK'] else 'LOST'}")
    print(f"  audit log: {verified.verified_entries} entries, complete {verified.complete}, fault {verified.fault}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
