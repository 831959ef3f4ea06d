"""Errors of calls, as grpcio raises them."""

import grpc


class Lost(grpc.RpcError):
    """A connection that broke before the answer came."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "lost"

    def trailing_metadata(self) -> tuple[()]:
        return ()
