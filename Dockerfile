# The daemon in an image of its own. Mount
#   /etc/outboxd   the configuration (read-only), and secrets as files that not everybody may read
#   /data          the FOLDER of the application's database (not the file alone: SQLite makes files beside it)
# and run it as the user that owns the database, if that is not 10001:   docker run --user 1000:1000 ...
# The application and outboxd must share the machine and this mount: SQLite's locks do not work over network file systems.
#
#   docker run --read-only --tmpfs /control:mode=1777 --cap-drop=ALL \
#     --security-opt=no-new-privileges --stop-timeout 45 -v ./outboxd:/etc/outboxd:ro -v ./data:/data outboxd
#
# In this version the admin address is on loopback only, that is, inside the container: the health check reaches it, a scraper
# has to share the container's network (a sidecar in the same pod, or --network container:...).

# Another image with Rust and a C compiler may be named instead: --build-arg RUST=...
ARG RUST=rust:1.94-bookworm
FROM ${RUST} AS build
WORKDIR /build
COPY .cargo ./.cargo
COPY Cargo.toml Cargo.lock build.rs ./
COPY config ./config
COPY src ./src
COPY migrations ./migrations
# The default features: Kafka, RabbitMQ, HTTP and S3, and OpenSSL built from source into the program.
RUN cargo build --locked --release

# The image is the program, the few libraries that it is linked with, the authorities for tls = {} and amqps://, and folders to mount on. No shell,
# no package manager: what is not there needs no updates and helps nobody. A new image has newer libraries.
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /image
# /control is for whoever the container runs as; podman's --tmpfs takes its mode from here. Not below /run: with --read-only podman lays a memory of
# its own over that, in which only root may make a file.
RUN install -D /build/target/release/outboxd usr/bin/outboxd \
    && ldd usr/bin/outboxd | grep -o '/[^ ]*' | while read -r library; do install -D "$library" ".$library"; done \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt etc/ssl/certs/ca-certificates.crt \
    && echo 'hosts: files dns' > etc/nsswitch.conf \
    && install -d -m 1777 control \
    && install -d /data

FROM scratch
COPY --from=build /image /
COPY --from=build --chown=10001:10001 /data /data
# Numbers, so that an orchestrator can tell that it is not root.
USER 10001:10001
# Temporary files of SQLite go here, too: there is no /tmp.
WORKDIR /data
ENV OUTBOXD_CONFIG=/etc/outboxd/outboxd.toml \
    OUTBOXD_DAEMON__ADMIN=127.0.0.1:9464 \
    OUTBOXD_DAEMON__CONTROL=unix:/control/outboxd.sock
STOPSIGNAL SIGTERM
# With the address it reads no configuration: a wrong one, which a reload refuses, does not make a daemon that works look unhealthy.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/bin/outboxd", "health", "--address", "127.0.0.1:9464"]
ENTRYPOINT ["/usr/bin/outboxd"]
CMD ["run"]
