"""Several workers on one port: a supervisor starts them, keeps them alive, replaces and drains them.

A worker is a process of the same command, started by exec: a process with gRPC threads cannot be forked. The supervisor
serves no flags. It reserves the port (`port`), reads from a pipe when each worker serves (`report`), probes each worker
periodically (`probe`), keeps one worker alive per number (`slot`), and serves health, `/readyz` and `/metrics` for all
of them (`supervisor`, `aggregate`).
"""
