# syntax=docker/dockerfile:1
# CPU image of the adamd server: built in one stage, run without compilers or root.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/adamd
ENV PATH=/opt/adamd/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
# The versions are pyproject.toml's to bound.
# hadolint ignore=DL3013
RUN pip install '.[service]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/adamd --create-home adamd
COPY --from=build /opt/adamd /opt/adamd
ENV PATH=/opt/adamd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CPU_NAME=generic \
    ADAMD_HOST=0.0.0.0 \
    ADAMD_PORT=8000 \
    ADAMD_GRPC_PORT=50051 \
    ADAMD_DATA_DIR=/var/lib/adamd
USER 10001
# Compile the kernels once, here, for any CPU of this architecture, into the home directory: being a volume, it is writable
# on a read-only file system too, so that a container starts in a second.
RUN python -c "import numpy as np; from adamd_service.optim import warm_up; warm_up([np.dtype('f4'), np.dtype('f8')])"
VOLUME /var/lib/adamd
EXPOSE 8000 50051
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["adamd"]
CMD ["serve"]
