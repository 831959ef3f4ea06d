"""What is deployed elsewhere, as files: it needs tools that `make test` does without. `make check-deploy` runs this."""
