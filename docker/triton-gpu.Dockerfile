# Triton with TensorRT-LLM, this package and its model repository. Not built yet: docs/deployment.md.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
ARG TRITON_TAG=26.04

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY docker/requirements/wheel.lock docker/requirements/wheel.lock
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --requirement docker/requirements/wheel.lock
COPY pyproject.toml README.md ./
COPY llm_pipeline llm_pipeline
COPY frontend frontend
COPY build_engine build_engine
COPY launcher launcher
COPY complete_cli complete_cli
COPY triton_completions triton_completions
RUN python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}-trtllm-python-py3
# The version in this tag (table in docs/deployment.md). Engines run on no other, so a mismatch fails the build.
ARG TENSORRT_LLM_VERSION=1.2.1
LABEL org.opencontainers.image.title="triton-completions: Triton with TensorRT-LLM" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 0
WORKDIR /opt/triton-completions
COPY docker/install_into_image.py docker/healthcheck.py ./
COPY docker/requirements/triton.lock ./
# python3 from PATH: the image's venv since 26.03, the system's before. Triton's stubs run the same interpreter.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 install_into_image.py --expect "tensorrt_llm==${TENSORRT_LLM_VERSION}" --lock triton.lock /wheels/*.whl
COPY model_repository model_repository

# sshd, for ranks on several nodes: launcher/gpu/worker.py. Its host keys come from a Secret. The distribution of the base
# image has one version of it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*

# The user of Triton's images has no home directory. Libraries cache here: mount a volume, not a noexec tmpfs, because
# some of the cached files are compiled code.
ENV HOME=/var/cache/triton-completions
RUN install --directory --owner 1000 --group 1000 "$HOME"
ENV XDG_CACHE_HOME=$HOME/xdg \
    HF_HOME=$HOME/hf \
    HF_HUB_OFFLINE=1 \
    TRITON_CACHE_DIR=$HOME/triton \
    TORCHINDUCTOR_CACHE_DIR=$HOME/inductor \
    NUMBA_CACHE_DIR=$HOME/numba \
    TMPDIR=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# Without CAP_SYS_PTRACE (compose drops it), Open MPI 4's shared memory logs an error for each message between ranks that
# it tries to copy at once (open-mpi/ompi#4948). Tensors go through NCCL: nothing is lost.
ENV OMPI_MCA_btl_vader_single_copy_mechanism=none

ENV EXECUTOR=tensorrt_llm \
    MODEL_REPOSITORY=/opt/triton-completions/model_repository \
    TRITON_HOST=0.0.0.0
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python3", "/opt/triton-completions/healthcheck.py", "TRITON_HTTP_PORT", "8000", "/v2/health/ready", "ensemble"]
# The entrypoint is NVIDIA's: it checks the driver, sets up CUDA forward compatibility and then execs this command.
CMD ["python3", "-m", "launcher.gpu"]
