# One image for all our processes; compose.yaml says which command each of them runs.

FROM python:3.13-slim-trixie AS build
WORKDIR /build
COPY requirements.txt ./
COPY requirements/flower.txt requirements/
RUN python -m venv --without-pip /venv \
    && python -m pip --python /venv/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
        -r requirements.txt -r requirements/flower.txt

FROM python:3.13-slim-trixie
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# The number is fixed so that the files of a volume stay ours. SQLite, the default, needs instance/.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin mailasync \
    && install -d -o mailasync -g mailasync /app/instance
WORKDIR /app
COPY --from=build /venv /venv
COPY app.py mailasync.py default_settings.py ./
COPY deploy deploy
COPY docs/clients docs/clients
COPY migrations migrations
COPY mailroom mailroom
USER 10001:10001
EXPOSE 5000
STOPSIGNAL SIGTERM
# The web process's, as the command is; compose.yaml has those of the others.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "deploy/answers.py", "5000", "/livez"]
CMD ["python", "app.py"]
