# The image of workers and servers: Python, PyTorch, Paceline and its examples. Build it from the repository's root.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim
FROM ${BASE_IMAGE}

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="paceline-trainer" \
      org.opencontainers.image.description="PyTorch with Paceline: workers and parameter servers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

# a name for the user, which libraries ask for; the environment is the user's, so that images on top can add packages
RUN echo 'paceline:x:1000:1000::/workspace:/bin/sh' >> /etc/passwd && echo 'paceline:x:1000:' >> /etc/group \
 && mkdir /workspace /opt/paceline && chown 1000:1000 /workspace /opt/paceline
USER 1000:1000
WORKDIR /workspace
ENV HOME=/workspace PATH=/opt/paceline/bin:$PATH PYTHONUNBUFFERED=1

# PyTorch first and alone: its layer is 5 GB, and stays when Paceline changes. For CPUs only, much smaller:
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=
RUN python3 -m venv /opt/paceline \
 && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.13" numpy
COPY --chown=1000:1000 pyproject.toml README.md LICENSE /tmp/paceline/
COPY --chown=1000:1000 trainer /tmp/paceline/trainer
COPY --chown=1000:1000 operator /tmp/paceline/operator
RUN pip install --no-cache-dir "/tmp/paceline[trainer,examples]" && rm -r /tmp/paceline

ENTRYPOINT ["python", "-P", "-m", "paceline.entrypoint"]
CMD ["python", "-m", "paceline.examples.digits"]
