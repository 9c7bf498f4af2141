# The front end. Not built yet: docs/deployment.md.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
COPY docker/requirements/wheel.lock docker/requirements/frontend.lock docker/requirements/
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --requirement docker/requirements/wheel.lock \
    && python -m venv --without-pip /opt/venv \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --require-hashes \
        --requirement docker/requirements/frontend.lock
COPY pyproject.toml README.md ./
COPY llm_pipeline llm_pipeline
COPY frontend frontend
COPY build_engine build_engine
COPY launcher launcher
COPY complete_cli complete_cli
COPY triton_completions triton_completions
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps /wheels/*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="triton-completions: front end" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin serve
COPY --from=build /opt/venv /opt/venv
COPY docker/healthcheck.py /opt/triton-completions/healthcheck.py
WORKDIR /opt/triton-completions
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    LOG_FORMAT=json
USER 10001:10001
EXPOSE 9000
# Ready means that the model has answered, so the container becomes healthy after Triton.
HEALTHCHECK --interval=5s --timeout=5s --start-period=2m --retries=3 \
    CMD ["python", "/opt/triton-completions/healthcheck.py", "PORT", "9000", "/health/ready"]
ENTRYPOINT ["python", "-m", "frontend"]
