# A minimal image: the program, and the two libraries that it speaks netlink with.
FROM rust:1-slim-trixie AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc pkg-config libc6-dev libnftnl-dev libmnl-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY examples examples
RUN cargo build --release --locked --bin pointsman \
    && mkdir -p /image/lib \
    && cp target/release/pointsman /image/ \
    && ldd target/release/pointsman | awk '/=> \// { print $3 } /^\t\// { print $1 }' \
        | xargs -I {} cp --parents -L {} /image/

FROM scratch
COPY --from=build /image/ /
ENTRYPOINT ["/pointsman"]
