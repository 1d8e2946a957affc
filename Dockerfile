# One image for every process: `sluice frontend` (the default) and `sluice worker NAME`. Secrets come in at run time only.

FROM python:3.11-slim AS build
# requirements-otel.lock for an image that can send traces.
ARG LOCK=requirements.lock
WORKDIR /build
RUN python -m venv /opt/sluice
COPY requirements.lock requirements-otel.lock ./
RUN /opt/sluice/bin/pip install --no-cache-dir --require-hashes -r "$LOCK"
COPY pyproject.toml README.md LICENSE ./
COPY shared ./shared
COPY frontend ./frontend
COPY workers ./workers
COPY cli ./cli
RUN /opt/sluice/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin sluice
COPY --from=build /opt/sluice /opt/sluice
ENV PATH=/opt/sluice/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SLUICE_HOST=0.0.0.0 \
    SLUICE_STATE_DIR=/tmp/sluice
WORKDIR /tmp
USER 10001:10001
EXPOSE 8088
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 CMD ["python", "-m", "cli.alive", "frontend"]
CMD ["sluice", "frontend"]
