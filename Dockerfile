# syntax=docker/dockerfile:1
# One image for every part of Remit: each service, migrations, the gateway's configuration and drain,
# keys and certificates. PostgreSQL and Envoy are images of their own.
# The Python that the tests run on.
ARG PYTHON=3.11-slim-trixie

FROM python:${PYTHON} AS build
# The uv that wrote uv.lock; the Makefile names the same version.
ARG UV_VERSION=0.13.9
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PROJECT_ENVIRONMENT=/opt/remit \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /src
RUN python -m pip install "uv==${UV_VERSION}"
# Dependencies first: they change less often than the source, and a layer keeps them.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --locked --no-dev --no-editable --no-install-project
COPY services services
RUN uv sync --locked --no-dev --no-editable

FROM python:${PYTHON}
ARG VERSION=0.0.1
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Remit" \
      org.opencontainers.image.description="A gRPC mesh that runs AI agents in production" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number, so that Kubernetes can see that it is not root (runAsNonRoot). The folders are where
# volumes are mounted: a new named volume takes its owner from the folder below it.
RUN groupadd --gid 10001 remit \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin remit \
    && install --directory --owner=10001 --group=10001 --mode=0750 /etc/remit /var/lib/remit \
        /installation /installation/ca /installation/setup /installation/postgres \
        /installation/agent /installation/audit /installation/cost /installation/gateway \
        /installation/inference /installation/policy /installation/tools
COPY --from=build /opt/remit /opt/remit
ENV PATH=/opt/remit/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/remit
USER 10001:10001
# Asks the plain port of whichever service this container's environment configures.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --start-interval=1s --retries=3 \
    CMD ["remit", "probe"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["remit"]
CMD ["--help"]
