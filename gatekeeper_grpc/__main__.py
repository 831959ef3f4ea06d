"""`python -m gatekeeper_grpc` is `gatekeeper`."""

from gatekeeper_grpc.cli.main import main

if __name__ == "__main__":
    main()
