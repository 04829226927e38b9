# The server alone, as an ordinary user. Needs tuning/seccomp.json to run: see docker-compose.yml.
#
# A commit gives the same binary wherever and whenever it is built: the compiler has its version, the libraries have
# their lock file, and no path of the machine is in it. (The base image is only as old as its tag.)

FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
# Flags for both compilers: the library for TLS has C and assembly in it.
RUN RUSTFLAGS="--remap-path-prefix=$PWD=stampede --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
    CFLAGS="-ffile-prefix-map=$PWD=stampede -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=cargo" \
    cargo build --release --locked --bin stampede

# Not a smaller base: the binary needs a C library that resolves names, the health check needs bash, and so does whoever
# looks into a container that does not sell.
FROM debian:12.15-slim
RUN useradd --uid 10001 --home-dir /var/lib/stampede stampede \
    && install --directory --owner stampede --group stampede --mode 700 /var/lib/stampede
# For sslmode=verify-full. A copy, so that this stage downloads nothing.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/stampede /usr/bin/stampede
# By number: an orchestrator that refuses root can tell.
USER 10001
ENV DATA_DIR=/var/lib/stampede
VOLUME /var/lib/stampede
EXPOSE 8080
# Ready to sell, at the port that the settings say.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/${PORT:-${APP_PORT:-8080}} && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["stampede"]
