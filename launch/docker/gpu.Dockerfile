# fiat-jax for machines with NVIDIA GPUs; CUDA comes in with JAX, the driver from the machine:   docker build -f launch/docker/gpu.Dockerfile -t REGISTRY/fiat-jax-gpu:1 .
FROM python:3.12-slim
WORKDIR /opt/fiat
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY fiat_jax fiat_jax
COPY configs configs
COPY prompts prompts
RUN pip install --no-cache-dir -c requirements.lock '.[gpu]'
