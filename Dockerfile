# The server alone, as an ordinary user. Needs tuning/seccomp.json to run: see docker-compose.yml.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin stampede

FROM debian:bookworm-slim
# Certificates for sslmode=verify-full.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --home-dir /var/lib/stampede --create-home stampede
COPY --from=build /src/target/release/stampede /usr/bin/stampede
USER stampede
ENV DATA_DIR=/var/lib/stampede
VOLUME /var/lib/stampede
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
CMD ["stampede"]
