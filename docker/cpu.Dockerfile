# The whole stack on the embedded CPU engine: Triton from its wheel, the default engine, the front end. Not built yet:
# docs/deployment.md.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /opt/triton-completions
COPY requirements requirements
RUN python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes \
        --requirement requirements/serve.lock
COPY pyproject.toml README.md ./
COPY llm_pipeline llm_pipeline
COPY frontend frontend
COPY build_engine build_engine
COPY launcher launcher
COPY complete_cli complete_cli
COPY triton_completions triton_completions
COPY model_repository model_repository
# Editable, because the launcher expects model_repository in the parent directory of its package. Triton's backends are
# assembled here and not at the start: they are executables, and docker mounts a tmpfs noexec.
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && /opt/venv/bin/python -m build_engine build --target cpu --output /opt/engine \
    && /opt/venv/bin/python -c "from pathlib import Path; from launcher.local.triton_wheel import prepare_backends; \
prepare_backends(Path('/opt/run'))" \
    && chmod -R a+rX /opt/engine /opt/run

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="triton-completions: CPU" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin serve \
    && install --directory --owner 10001 --group 10001 \
        /var/lib/triton-completions /var/lib/triton-completions/logs /var/lib/triton-completions/model_repository
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/triton-completions /opt/triton-completions
COPY --from=build /opt/engine /opt/engine
COPY --from=build /opt/run/triton /var/lib/triton-completions/triton
COPY docker/healthcheck.py /opt/triton-completions/healthcheck.py
WORKDIR /opt/triton-completions
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    ENGINE_DIR=/opt/engine \
    RUN_DIR=/var/lib/triton-completions \
    LOG_FORMAT=json
USER 10001:10001
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "/opt/triton-completions/healthcheck.py", "PORT", "9000", "/health/ready"]
ENTRYPOINT ["python", "-m", "launcher"]
