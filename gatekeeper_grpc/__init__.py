"""Gatekeeper, a self-hosted feature-flag service: gRPC, PostgreSQL, one revision per answer."""
