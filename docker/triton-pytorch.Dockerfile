# Triton beside TensorRT-LLM 1.3 and later, for its PyTorch runtime: this package and its model repository on upstream's
# release image. Not built yet: docs/deployment.md.
#
# No image of Triton has these versions, and the release image has no Triton. Upstream's CI image gets the server in the
# same way: NVIDIA/TensorRT-LLM, docker/Dockerfile.multi, stage tritondevel, read at d7a8ad73.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
# Not newer than the NGC release that TensorRT-LLM's image is based on, with the same CUDA and Python (3.12).
ARG TRITON_TAG=26.05
ARG TENSORRT_LLM_VERSION=1.3.0rc29

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

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}-py3 AS triton

FROM nvcr.io/nvidia/tensorrt-llm/release:${TENSORRT_LLM_VERSION}
ARG TENSORRT_LLM_VERSION=1.3.0rc29
LABEL org.opencontainers.image.title="triton-completions: Triton with TensorRT-LLM's PyTorch runtime" \
    org.opencontainers.image.licenses="Apache-2.0"
USER 0
COPY --from=triton /opt/tritonserver/bin /opt/tritonserver/bin
COPY --from=triton /opt/tritonserver/lib /opt/tritonserver/lib
COPY --from=triton /opt/tritonserver/backends/python /opt/tritonserver/backends/python
COPY --from=triton /opt/tritonserver/TRITON_VERSION /opt/tritonserver/TRITON_VERSION
WORKDIR /opt/triton-completions
COPY docker/install_into_image.py docker/healthcheck.py docker/complete_libraries.py ./
COPY docker/requirements/triton.lock ./
# The server needs some libraries that the release image lacks (DCGM, libb64, libarchive, ...). They are found after all
# others, by ldconfig, so that none takes the place of one that is here.
RUN --mount=type=bind,from=triton,source=/,target=/triton \
    python3 complete_libraries.py --from /triton --into /opt/tritonserver/libraries \
        /opt/tritonserver/bin/tritonserver \
        /opt/tritonserver/backends/python/libtriton_python.so \
        /opt/tritonserver/backends/python/triton_python_backend_stub \
    && echo /opt/tritonserver/libraries > /etc/ld.so.conf.d/zz-tritonserver.conf \
    && ldconfig
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python3 install_into_image.py --expect "tensorrt_llm==${TENSORRT_LLM_VERSION}" --lock triton.lock /wheels/*.whl
COPY model_repository model_repository

# sshd, for ranks on several nodes: launcher/gpu/worker.py. Its host keys come from a Secret. The distribution of the base
# image has one version of it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*

# As in triton-gpu.Dockerfile: uid 1000 has no home directory, and libraries cache compiled code.
ENV HOME=/var/cache/triton-completions
RUN install --directory --owner 1000 --group 1000 "$HOME"
# TRTLLM_NO_USAGE_STATS: these versions report usage to NVIDIA unless told otherwise.
# OMPI_MCA_btl_vader_...: Open MPI 4 reads its peers' memory, for which the container has no right (open-mpi/ompi#4948).
ENV XDG_CACHE_HOME=$HOME/xdg \
    HF_HOME=$HOME/hf \
    HF_HUB_OFFLINE=1 \
    TRITON_CACHE_DIR=$HOME/triton \
    TORCHINDUCTOR_CACHE_DIR=$HOME/inductor \
    NUMBA_CACHE_DIR=$HOME/numba \
    FLASHINFER_WORKSPACE_BASE=$HOME/flashinfer \
    TMPDIR=/tmp \
    TRTLLM_NO_USAGE_STATS=1 \
    OMPI_MCA_btl_vader_single_copy_mechanism=none \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

ENV EXECUTOR=tensorrt_llm_pytorch \
    MODEL_REPOSITORY=/opt/triton-completions/model_repository \
    TRITON_HOST=0.0.0.0
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=3 \
    CMD ["python3", "/opt/triton-completions/healthcheck.py", "TRITON_HTTP_PORT", "8000", "/v2/health/ready", "ensemble"]
# The entrypoint is NVIDIA's: it checks the driver, sets up CUDA forward compatibility and then execs this command.
CMD ["python3", "-m", "launcher.gpu"]
