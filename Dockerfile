# syntax=docker/dockerfile:1
# One image for CPUs and GPUs: the locked PyTorch brings CUDA, and NVIDIA's driver stays on the host.
# docs/how-to/install.md has the commands.

FROM python:3.12-slim-bookworm AS tools
# make and git: the Makefile, W&B's record of the code. g++: trainer.compile=true.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 --shell /bin/bash researcher

FROM tools AS train
# Before the code, so that an edit of it installs nothing anew.
COPY requirements.lock /tmp/
RUN --mount=type=cache,target=/var/cache/pip \
    python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --cache-dir /var/cache/pip --require-hashes -r /tmp/requirements.lock
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY cifar_lightning/ cifar_lightning/
COPY conf/ conf/
COPY hydra_plugins/ hydra_plugins/
# Editable, so that code mounted at /app is what runs. Files are the user's own, whoever that is.
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation -e . \
    && mkdir data runs && chmod 1777 . data runs
ENV HOME=/tmp
USER 1000
ENTRYPOINT ["cifar-train"]
CMD ["data=shapes"]
