# An image with the server only, which runs as an ordinary user. The container needs the seccomp profile
# tuning/seccomp.json: see docker-compose.yml.
#
# The build is reproducible: a commit gives the same binary on every machine, because the compiler version and the lock
# file are fixed and machine paths are remapped. The tag of the base image is not fixed to a digest.

FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
# Flags for both compilers, because the TLS library contains C and assembly.
RUN RUSTFLAGS="--remap-path-prefix=$PWD=stampede --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo" \
    CFLAGS="-ffile-prefix-map=$PWD=stampede -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=cargo" \
    cargo build --release --locked --bin stampede

# Debian instead of a smaller base image: the binary needs glibc to resolve host names, and the health check needs bash.
# A shell also helps to examine a container that does not sell.
FROM debian:12.15-slim
RUN useradd --uid 10001 --home-dir /var/lib/stampede stampede \
    && install --directory --owner stampede --group stampede --mode 700 /var/lib/stampede
# Certificates for sslmode=verify-full, copied so that this stage downloads nothing.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/stampede /usr/bin/stampede
# A numeric user id, so that an orchestrator that forbids root can check it.
USER 10001
ENV DATA_DIR=/var/lib/stampede
VOLUME /var/lib/stampede
EXPOSE 8080
# Checks that the server is ready to sell, at the port from the settings.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/${PORT:-${APP_PORT:-8080}} && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["stampede"]
