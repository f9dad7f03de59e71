# One image, three commands: `api`, `worker`, `migration up`.

FROM node:22-bookworm-slim AS dashboard
WORKDIR /source/api/dashboard
COPY api/dashboard/package.json api/dashboard/package-lock.json api/dashboard/.npmrc ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY openapi.yaml /source/
COPY api/dashboard .
RUN npm run build

FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
COPY --from=dashboard /source/api/dashboard/dist api/dashboard/dist
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --locked --release --package api --package worker --package migration \
    && install -D -t /built target/release/api target/release/worker target/release/migration

# The native program alone: neither node nor the package's starter is needed to run it.
FROM node:22-bookworm-slim AS claude
WORKDIR /source
COPY scripts/claude-cli .
RUN npm ci --ignore-scripts --include=optional --no-audit --no-fund \
    && install -D node_modules/@anthropic-ai/claude-code-linux-*/claude /built/claude

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap ca-certificates curl git tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home claude-api \
    && install -d -o claude-api -m 700 /var/lib/claude-api /var/lib/claude-api/workspaces
COPY --from=claude /built /usr/local/bin
COPY --from=build /built /usr/local/bin
# By its number: who must not run as root is told so by nothing else.
USER 1000
WORKDIR /var/lib/claude-api
# Balancers look every few seconds: an api that is told to stop serves on until they have.
ENV HOST=0.0.0.0 PORT=3001 DRAIN_DELAY=5 LOG_FORMAT=json CLAUDE_BIN=/usr/local/bin/claude JOBS_DIR=/var/lib/claude-api/jobs \
    WORKSPACE_STORE=/var/lib/claude-api/workspaces
EXPOSE 3001
# For the api; the other commands have no port to ask.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD curl --fail --silent --output /dev/null "http://127.0.0.1:$PORT/health/ready"
ENTRYPOINT ["tini", "--"]
CMD ["api"]
