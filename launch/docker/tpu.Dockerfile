# fiat-jax for TPU hosts:   docker build -f launch/docker/tpu.Dockerfile -t REGISTRY/fiat-jax-tpu:1 .
FROM python:3.12-slim
WORKDIR /opt/fiat
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY fiat_jax fiat_jax
COPY configs configs
COPY prompts prompts
RUN pip install --no-cache-dir -c requirements.lock '.[tpu]'
