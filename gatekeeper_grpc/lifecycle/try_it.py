"""The lines that `make run` prints: paste them into a shell to try the server."""

import shlex

from gatekeeper_grpc.config import Settings, variable_of
from gatekeeper_grpc.domain.admin_user import FIRST_ADMIN
from gatekeeper_grpc.lifecycle.secrets_file import ADMIN_PASSWORD


def try_it(settings: Settings, *, port: int) -> str:
    """Return lines to paste into a shell: evaluate, log in, change the rollout."""
    address = f"{settings.listen.rpartition(':')[0]}:{port}"
    curl = "buf curl --protocol grpc --http2-prior-knowledge"
    call = f"http://{address}/gatekeeper.v1"
    alice = """'{"context":{"user_id":"alice"}}'"""
    login = f"""'{{"username":"{FIRST_ADMIN}","password":"'"{_admin_password(settings)}"'"}}'"""
    to_token = r"""tr -d ' \n' | sed 's/.*"accessToken":"\([^"]*\)".*/\1/'"""  # noqa: S105 - a shell filter
    update = """'{"flag":{"key":"new_checkout","rolloutPercentage":50},"updateMask":"rolloutPercentage"}'"""
    return f"""Serving on {address}. Paste to try it (.venv/bin/buf is installed by `make install`):

# Evaluate all flags for a user
{curl} -d {alice} {call}.EvaluationService/EvaluateFlags
grpcurl -plaintext -d {alice} {address} gatekeeper.v1.EvaluationService/EvaluateFlags
# Log in
TOKEN=$({curl} -d {login} {call}.AuthService/Login | {to_token})
# Change the rollout
{curl} -H "authorization: Bearer $TOKEN" -d {update} {call}.AdminService/UpdateFlag
"""


def _admin_password(settings: Settings) -> str:
    """Return an expression that a shell expands, between double quotes, to the first admin's password."""
    file = settings.data_dir.absolute() / ADMIN_PASSWORD
    return f"$(cat {shlex.quote(str(file))})" if file.exists() else f"${variable_of('admin_password')}"
