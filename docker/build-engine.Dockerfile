# Builds engines: the serving image plus the packages of build_engine. An engine runs only on the TensorRT-LLM version
# that built it, so both images share one. Not built yet: docs/deployment.md.
ARG SERVING_IMAGE=triton-completions/triton-gpu:0.1.0

FROM ${SERVING_IMAGE}
LABEL org.opencontainers.image.title="triton-completions: engine build"
USER 0
WORKDIR /opt/triton-completions
COPY docker/requirements/build-engine.lock ./
RUN python3 install_into_image.py --lock build-engine.lock
USER 1000:1000
HEALTHCHECK NONE
CMD ["python3", "-m", "build_engine", "--help"]
