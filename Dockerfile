# syntax=docker/dockerfile:1
#
# The daemon in an image of its own. Mount
#   /etc/outboxd   the configuration (read-only), and secrets as files that not everybody may read
#   /data          the FOLDER of the application's database (not the file alone: SQLite makes files beside it)
# and run it as the user that owns the database, if that is not 10001:   docker run --user 1000:1000 ...
# The application and outboxd must share the machine and this mount: SQLite's locks do not work over network file systems.
#
#   docker run --read-only --tmpfs /run/outboxd:uid=10001,gid=10001,mode=0750 --cap-drop=ALL \
#     --security-opt=no-new-privileges --stop-timeout 45 -v ./outboxd:/etc/outboxd:ro -v ./data:/data outboxd
#
# In this version the admin address is on loopback only, that is, inside the container: the health check reaches it, a scraper
# has to share the container's network (a sidecar in the same pod, or --network container:...).

FROM rust:1.94-bookworm AS build
WORKDIR /build
COPY .cargo ./.cargo
COPY Cargo.toml Cargo.lock build.rs ./
COPY config ./config
COPY src ./src
COPY migrations ./migrations
# The default features: Kafka and RabbitMQ, and OpenSSL built from source into the program.
RUN cargo build --locked --release

FROM debian:bookworm-slim
# The authorities for tls = {} and amqps://.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/outboxd /usr/bin/outboxd
# Numbers, so that an orchestrator can tell that it is not root.
RUN install -d -o 10001 -g 10001 -m 0750 /run/outboxd /data
USER 10001:10001
WORKDIR /data
ENV OUTBOXD_CONFIG=/etc/outboxd/outboxd.toml \
    OUTBOXD_DAEMON__ADMIN=127.0.0.1:9464 \
    OUTBOXD_DAEMON__CONTROL=unix:/run/outboxd/outboxd.sock
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 CMD ["/usr/bin/outboxd", "health"]
ENTRYPOINT ["/usr/bin/outboxd"]
CMD ["run"]
