# Builds engines: the image that serves them, and build_engine's few packages. An engine is bound to the TensorRT-LLM
# that built it, so there is no second one. Not built yet: see docs/deployment.md.
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
