# Two stages: the first builds a virtual environment; the second has only Python and that environment.
FROM python:3.11-slim-bookworm AS build
WORKDIR /build
RUN python -m venv /opt/gatekeeper
ENV PATH=/opt/gatekeeper/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Before the code is copied, so that a change of code does not reinstall dependencies.
COPY requirements.lock ./
RUN pip install --require-hashes --requirement requirements.lock
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY gatekeeper_grpc gatekeeper_grpc
COPY clients/python clients/python
COPY generated generated
COPY migrations migrations
# The lock file also has the build tools; the server does not need them.
RUN pip install --no-deps --no-build-isolation ./clients/python . \
 && pip uninstall --yes editables hatchling packaging pathspec pluggy tomlkit trove-classifiers \
 && python -m pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/gatekeeper --create-home gatekeeper
COPY --from=build /opt/gatekeeper /opt/gatekeeper
ENV PATH=/opt/gatekeeper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEKEEPER_DATA_DIR=/var/lib/gatekeeper/data \
    GATEKEEPER_LISTEN=0.0.0.0:50051 \
    GATEKEEPER_HEALTH_LISTEN=0.0.0.0:50052 \
    GATEKEEPER_OPS_LISTEN=0.0.0.0:9464 \
    GATEKEEPER_LOG_FORMAT=json
USER gatekeeper
WORKDIR /var/lib/gatekeeper
# Without DATABASE_URL: holds the embedded PostgreSQL and its generated secrets. Always: the last-known-good snapshot.
VOLUME /var/lib/gatekeeper
EXPOSE 50051 50052 9464
# 1 is SERVING. The health server has its own port and workers, so it answers even if the main server is saturated.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["python", "-c", "import grpc; from grpc_health.v1.health_pb2 import HealthCheckRequest as R; from grpc_health.v1.health_pb2_grpc import HealthStub as H; raise SystemExit(H(grpc.insecure_channel('127.0.0.1:50052')).Check(R(), timeout=2).status != 1)"]
ENTRYPOINT ["gatekeeper"]
CMD ["serve"]
