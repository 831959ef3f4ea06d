"""Everything between a socket and the interceptors.

`listener` binds a server, with the certificate of `tls`; `core` prepares the C core under grpcio. `admission` queues a
call for a pool of workers, or refuses it. `pending_calls` holds a call until its message is here, in turns
(`receive_slots`), `hold` while the server drains. `deadlines` ends calls that take too long, `slow_readers` those of
clients that do not read. `drain` sends GOAWAY before a stop, or ends quiet connections (`goaway`).
`connections` closes idle connections when there are too many.
`grpcio_internals` uses grpcio's private API.
"""
