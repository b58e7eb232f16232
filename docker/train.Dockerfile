# Everything, for a machine with an NVIDIA GPU (it runs on a CPU too): torch, onnxruntime-gpu, the native library.
#   docker build -f docker/train.Dockerfile -t cpn .
#   docker run --rm --gpus all -v "$PWD:/data" cpn train --data classes:photos --output runs/photos
FROM python:3.11-slim AS build
# The C++ compiler builds the native library, and Triton needs one to compile its launchers.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE CMakeLists.txt constraints.txt ./
COPY cpn_fast ./cpn_fast
COPY kernels ./kernels
COPY export ./export
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt '.[train,gpu]'

FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home train
COPY --from=build /venv /venv
USER train
WORKDIR /data
ENTRYPOINT ["/venv/bin/cpn"]
CMD ["--help"]
