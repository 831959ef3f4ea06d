"""Holds calls of public methods until their first message is here: a pending call costs memory, and no thread.

Anybody may open such a call and send nothing. grpcio gives each of them a worker, which waits: four such calls stop a
server with four workers.
"""

from collections.abc import Callable
from functools import partial

from gatekeeper_grpc.transport.deadlines import Deadlines
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.wire.status import RequestTimeout, status_from_error


class PendingCalls:
    """The calls without a message. Ends those whose message does not come in time.

    Args:
        deadlines: Those of the server.
        capacity: How many calls may be pending; one more ends the oldest, never the newest.
    """

    def __init__(self, deadlines: Deadlines, *, capacity: int) -> None:
        self._calls = deadlines.group("pending_calls", self._time_out, capacity=capacity)
        self._timeout = status_from_error(RequestTimeout("no request message arrived in time"), "")

    def __len__(self) -> int:
        """Count the pending calls."""
        return len(self._calls)

    def hold(self, call: ArrivedCall, *, within_s: float, admit: Callable[[ArrivedCall], None]) -> None:
        """Keep `call` until its first message is here, then `admit` it; end it if that takes longer than `within_s`.

        Runs on the serving thread, and so does `admit`: both must take constant time.
        """
        call.receive_then(partial(self._received, call, admit))
        self._calls.add(call, within_s=within_s)

    def _received(self, call: ArrivedCall, admit: Callable[[ArrivedCall], None]) -> None:
        self._calls.remove(call)
        if call.is_live():
            admit(call)

    def _time_out(self, call: ArrivedCall) -> None:
        call.refuse_unless_received(self._timeout)
