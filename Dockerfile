# syntax=docker/dockerfile:1
# The image of rollbackd: one binary on distroless, no shell, no package manager, user 65532.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag registry.example/rollbackd:0.1.0 --push .
#
# The compiler runs on the machine that builds, for the machine that is asked for, so that no emulator is needed.
# To pin the bases: --build-arg RUST=…@sha256:… --build-arg RUNTIME=…@sha256:…
ARG RUST=docker.io/library/rust:1.95.0-slim-trixie
# glibc, because that is what the tests run on; `cc` for libgcc_s. The same Debian as above.
ARG RUNTIME=gcr.io/distroless/cc-debian13:nonroot

FROM --platform=$BUILDPLATFORM ${RUST} AS build
ARG TARGETARCH
WORKDIR /src
# What is said here once, for the two builds below: Rust's name of the machine, and its C compiler and linker (ring and
# SQLite are C).
RUN case "$TARGETARCH" in \
      amd64) target=x86_64-unknown-linux-gnu gnu=x86_64-linux-gnu ;; \
      arm64) target=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu ;; \
      *) echo "no build for TARGETARCH=$TARGETARCH, only for amd64 and arm64" >&2; exit 1 ;; \
    esac && \
    cc=gcc && \
    if [ "$TARGETARCH" != "$(dpkg --print-architecture)" ]; then \
      cc=$gnu-gcc && \
      apt-get update && \
      apt-get install --yes --no-install-recommends \
        "gcc-$(echo "$gnu" | tr _ -)" "libc6-dev-$TARGETARCH-cross" && \
      rm -rf /var/lib/apt/lists/* && \
      rustup target add "$target"; \
    fi && \
    name=$(echo "$target" | tr - _) && \
    echo "export CARGO_BUILD_TARGET=$target CC_$name=$cc \
      CARGO_TARGET_$(echo "$name" | tr a-z A-Z)_LINKER=$cc" > /env
# The dependencies alone, under an empty rollbackd: this layer is made again only when Cargo.lock changes. That the
# empty one was built is forgotten, lest cargo take it for the real one by the times of the files. (`cargo clean
# --package` leaves it there.)
COPY Cargo.toml Cargo.lock ./
RUN . /env && mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs && \
    cargo build --release --locked && \
    rm -r "target/$CARGO_BUILD_TARGET/release/.fingerprint"/rollbackd-*
COPY src src
RUN . /env && cargo build --release --locked && \
    mkdir -p /out/var/lib/rollbackd && cp "target/$CARGO_BUILD_TARGET/release/rollbackd" /out/

FROM ${RUNTIME}
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="rollbackd" \
      org.opencontainers.image.description="A safe HTTP API for DaemonSet revisions, rollbacks and rollout status" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
COPY --from=build /out/rollbackd /usr/local/bin/rollbackd
COPY LICENSE /usr/share/doc/rollbackd/LICENSE
# Where a volume for the record is mounted; without one it is lost with the container.
COPY --from=build --chown=65532:65532 /out/var/lib/rollbackd /var/lib/rollbackd
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/rollbackd"]
CMD ["serve"]
