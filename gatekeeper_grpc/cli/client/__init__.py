"""Client commands: they talk to a server over gRPC, and need neither its settings nor its database.

They read GATEKEEPER_SERVER, GATEKEEPER_TOKEN and the variables of `certificate.py`. Modules import grpc and the stubs
where they call: `--help` must be cheap.
"""
