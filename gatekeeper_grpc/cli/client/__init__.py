"""Client commands: they talk to a server over gRPC, and need neither its settings nor its database.

They read the variables of `server.py`, GATEKEEPER_TOKEN and GATEKEEPER_TOKEN_FILE. Modules import grpc and the stubs
where they call: `--help` must be cheap.
"""
