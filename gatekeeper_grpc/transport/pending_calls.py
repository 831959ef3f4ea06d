"""Where calls of open methods stay until their first message is here: waiting for a client costs memory, and no thread.

Anybody may open such a call and send nothing. grpcio gives each a worker that waits: four of them take a four-worker
server down.
"""

from collections.abc import Callable

from gatekeeper_grpc.transport.deadlines import Deadlines
from gatekeeper_grpc.transport.grpcio_internals import ArrivedCall
from gatekeeper_grpc.wire.status import RequestTimeout, status_from_error


class PendingCalls:
    """Holds calls without a message, and ends those whose message does not come.

    Args:
        capacity: How many calls are held at once; one more ends the oldest, never the newcomer.
    """

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._held: Deadlines[ArrivedCall] = Deadlines("calls_without_message", self._refuse)
        self._too_late = status_from_error(RequestTimeout("no request message arrived in time"), "")

    def __len__(self) -> int:
        """Count the calls held now."""
        return len(self._held)

    def hold(self, call: ArrivedCall, *, within_s: float, admit: Callable[[], None]) -> None:
        """Keep `call` until its first message is here, then `admit` it; end it when that takes longer than `within_s`.

        For the serving thread: takes constant time, as does `admit`, which runs there too.
        """
        call.receive_then(lambda: self._release(call, admit))
        self._held.make_room(self._capacity)
        self._held.add(call, within_s=within_s)

    def close(self) -> None:
        """Stop ending calls. For a server that has stopped: grpcio has ended them all by then."""
        self._held.close()

    def _release(self, call: ArrivedCall, admit: Callable[[], None]) -> None:
        self._held.remove(call)
        if call.is_live():
            admit()

    def _refuse(self, call: ArrivedCall) -> None:
        call.refuse_unless_received(self._too_late)
