# The operator's image: Python and Kubernetes clients, no PyTorch. Build it from the repository's root.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim
FROM ${BASE_IMAGE} AS build
COPY pyproject.toml README.md LICENSE /tmp/paceline/
COPY trainer /tmp/paceline/trainer
COPY operator /tmp/paceline/operator
RUN python3 -m venv /tmp/venv \
 && /tmp/venv/bin/pip install --no-cache-dir --no-compile --target /opt/paceline "/tmp/paceline[operator]"

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="paceline-operator" \
      org.opencontainers.image.description="Runs DistributedTrainings on Kubernetes" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/paceline /opt/paceline
ENV PYTHONPATH=/opt/paceline PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
ENTRYPOINT ["python3", "-P", "-m", "paceline_operator"]
