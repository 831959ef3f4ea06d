# Two stages: the first has tools that build; the second has Python, the packages of requirements-image.lock, and the server.
#
# A tag may move. To build on a base that you have looked at, name it by its digest:
#   docker buildx imagetools inspect python:3.11-slim-bookworm    # prints it as "Digest: sha256:..."
#   docker build --build-arg BASE=python:3.11-slim-bookworm@sha256:... .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The tools stay in an environment of their own; the one that the image gets has not even pip.
RUN python -m venv tools && python -m venv --without-pip /opt/gatekeeper
# For the kernel of the draws. A base without apt-get builds an image that makes them in Python if this line is removed.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# Before the code is copied, so that a change of code does not reinstall dependencies.
COPY requirements.lock requirements-image.lock ./
RUN tools/bin/pip install --require-hashes --requirement requirements.lock
RUN tools/bin/pip --python /opt/gatekeeper/bin/python install --require-hashes --requirement requirements-image.lock
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY gatekeeper_grpc gatekeeper_grpc
COPY clients/python clients/python
COPY generated generated
COPY migrations migrations
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels ./clients/python .
RUN tools/bin/pip --python /opt/gatekeeper/bin/python install --no-index --no-deps wheels/*.whl

FROM ${BASE}
# The base's own pip and setuptools would install what no lock file names.
RUN python -m pip uninstall --yes --quiet --root-user-action ignore pip setuptools wheel \
 && groupadd --system --gid 10001 gatekeeper \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/gatekeeper --create-home gatekeeper
COPY --from=build /opt/gatekeeper /opt/gatekeeper
ENV PATH=/opt/gatekeeper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEKEEPER_DATA_DIR=/var/lib/gatekeeper/data \
    GATEKEEPER_LISTEN=0.0.0.0:50051 \
    GATEKEEPER_HEALTH_LISTEN=0.0.0.0:50052 \
    GATEKEEPER_OPS_LISTEN=0.0.0.0:9464 \
    GATEKEEPER_LOG_FORMAT=json
# As numbers: Kubernetes' runAsNonRoot cannot tell from a name.
USER 10001:10001
WORKDIR /var/lib/gatekeeper
# The last-known-good snapshot and, unless GATEKEEPER_ERASURE_LEDGER names another place, the erasure ledger.
VOLUME /var/lib/gatekeeper
EXPOSE 50051 50052 9464
# 503 raises, and its body says why. The operations port has its own threads, so it answers even if the gRPC port is saturated.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:9464/readyz', timeout=2)"]
ENTRYPOINT ["gatekeeper"]
CMD ["serve"]
