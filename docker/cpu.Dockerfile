# The whole stack on the embedded CPU engine. Not built yet; see docker/README.md.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /opt/triton-completions
COPY requirements requirements
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --require-hashes --requirement requirements/serve.lock
COPY pyproject.toml README.md ./
COPY llm_pipeline llm_pipeline
COPY frontend frontend
COPY build_engine build_engine
COPY launcher launcher
COPY model_repository model_repository
# Editable, because the launcher finds model_repository beside the packages.
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-build-isolation --editable . \
    && /opt/venv/bin/python -m build_engine build --target cpu --output /opt/engine

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin serve \
    && install --directory --owner serve /var/lib/triton-completions/run
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/triton-completions /opt/triton-completions
COPY --from=build /opt/engine /opt/engine
WORKDIR /opt/triton-completions
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    ENGINE_DIR=/opt/engine \
    RUN_DIR=/var/lib/triton-completions/run \
    LOG_FORMAT=json
USER 10001
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9000/health/ready', timeout=2)"]
ENTRYPOINT ["python", "-m", "launcher"]
