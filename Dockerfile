# syntax=docker/dockerfile:1
# Image of the pipeline's containers, on a laptop and on Kubeflow (docs/kubeflow.md):
#   docker build --target cpu -t mlet-tf:cpu .
#   docker build --target gpu -t mlet-tf:gpu .
# .ci/replay_dockerfile.py runs these steps without docker.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Byte code that holds for any time stamp: a file system of a cluster may change those.
ENV PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    UV_LINK_MODE=copy
WORKDIR /src
# The locked TFX excludes Python 3.11 by its metadata only; uv passes over that, pip does not.
RUN python -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9
COPY requirements.lock ./
RUN python -m venv --without-pip /opt/venv \
    && /opt/uv/bin/uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode \
        --require-hashes -r requirements.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY mlet_tf ./mlet_tf
COPY components ./components
COPY pipeline ./pipeline
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode --no-deps \
        --no-build-isolation . \
    && install -D -m 644 requirements.lock /opt/venv/share/mlet-tf/requirements.lock

# CUDA's libraries come from the package index, as TensorFlow names them; the driver is the host's.
FROM build AS build-gpu
COPY requirements-gpu.lock ./
RUN /opt/uv/bin/uv pip install --no-cache --python /opt/venv/bin/python --no-deps \
        --require-hashes -r requirements-gpu.lock \
    && install -D -m 644 requirements-gpu.lock /opt/venv/share/mlet-tf/requirements-gpu.lock

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0
ARG REVISION=unknown
ARG CREATED=unknown
ARG PYTHON_IMAGE
LABEL org.opencontainers.image.title="mlet-tf" \
      org.opencontainers.image.description="Multi-layer embedding training: TFX pipeline from click logs to TensorFlow Serving" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      io.mlet-tf.lock="/opt/venv/share/mlet-tf/requirements.lock"
# Where Kubeflow's launcher puts copies of artifacts; newer versions mount volumes there.
RUN useradd --uid 10001 --gid 0 --create-home --home-dir /home/mlet mlet \
    && mkdir -p /gcs /s3 /minio \
    && chown 10001:0 /gcs /s3 /minio
# On Kubeflow the pipeline names `python` as the command, so it has to be found first.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/mlet \
    PYTHONUNBUFFERED=1 \
    TF_CPP_MIN_LOG_LEVEL=2 \
    TF_USE_LEGACY_KERAS=0
WORKDIR /home/mlet
USER 10001:0
# Kubeflow's containers name their own command; by hand it is `docker run mlet-tf run --config ...`.
ENTRYPOINT ["mlet-tf"]
CMD ["--help"]

FROM runtime AS gpu
COPY --from=build-gpu /opt/venv /opt/venv
# TensorFlow finds the libraries by its own run path; by this one they find each other.
ENV NVIDIA=/opt/venv/lib/python3.11/site-packages/nvidia
ENV LD_LIBRARY_PATH=$NVIDIA/cublas/lib:$NVIDIA/cuda_cupti/lib:$NVIDIA/cuda_nvrtc/lib:$NVIDIA/cuda_runtime/lib:$NVIDIA/cudnn/lib:$NVIDIA/cufft/lib:$NVIDIA/curand/lib:$NVIDIA/cusolver/lib:$NVIDIA/cusparse/lib:$NVIDIA/nccl/lib:$NVIDIA/nvjitlink/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
COPY --from=build /opt/venv /opt/venv
