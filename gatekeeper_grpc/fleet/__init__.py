"""Several workers on one port: a supervisor that starts them, keeps them alive, replaces and drains them.

A worker is a process of the same command, started by exec: what gRPC runs inside cannot be forked. The supervisor
serves no flags. It holds the port (`port`), hears from each worker through a pipe when it serves (`report`), asks each
again and again whether it still lives (`probe`), keeps one worker alive per number (`slot`), and answers for all of
them: health, `/ready` and `/metrics` (`supervisor`, `aggregate`).
"""
