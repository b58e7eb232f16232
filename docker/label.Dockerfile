# Labels images with an exported model, on a CPU: the base and onnxruntime, no torch.
#   docker build -f docker/label.Dockerfile -t cpn-label .
#   docker run --rm -v "$PWD:/data" cpn-label model.onnx photos --output masks
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE CMakeLists.txt constraints.txt ./
COPY cpn_fast ./cpn_fast
COPY kernels ./kernels
COPY export ./export
# No compiler here: the runtime takes no native operators.
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt '.[cpu]'

FROM python:3.11-slim
COPY --from=build /venv /venv
RUN useradd --create-home label
USER label
WORKDIR /data
ENTRYPOINT ["/venv/bin/cpn-label"]
CMD ["--help"]
