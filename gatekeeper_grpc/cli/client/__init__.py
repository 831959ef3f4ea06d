"""Client commands: they talk to a server over gRPC, and need neither its settings nor its database.

They read two variables, GATEKEEPER_SERVER and GATEKEEPER_TOKEN. Modules import grpc and the stubs where they call:
`--help` must be cheap.
"""
