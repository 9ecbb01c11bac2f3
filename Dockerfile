# A minimal image: the program, the two libraries that it speaks netlink with, and both variants of iptables,
# of which iptables mode runs the one that the node uses.
FROM rust:1-slim-trixie AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc pkg-config libc6-dev libnftnl-dev libmnl-dev iptables \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
COPY benches benches
COPY examples examples
COPY tests tests
RUN cargo build --release --locked --bin pointsman \
    && mkdir -p /image/lib /image/usr/bin \
    && cp target/release/pointsman /image/usr/bin/ \
    && ldd target/release/pointsman | awk '/=> \// { print $3 } /^\t\// { print $1 }' \
        | xargs -I {} cp --parents -L {} /image/
# The tools are two programs that go by their names; what they match and where they lead is loaded.
RUN mkdir -p /image/usr/sbin \
    && extensions=$(dirname "$(find /usr/lib -name libxt_comment.so)") \
    && for variant in nft legacy; do \
        cp "/usr/sbin/xtables-$variant-multi" /image/usr/sbin/ \
        && for family in iptables ip6tables; do \
            for what in "" -restore -save; do \
                ln -s "xtables-$variant-multi" "/image/usr/sbin/$family-$variant$what"; \
            done; \
        done; \
    done \
    && cp --parents -r "$extensions" /image/ \
    && ldd /usr/sbin/xtables-*-multi "$extensions"/*.so | awk '/=> \// { print $3 } /^\t\// { print $1 }' \
        | sort -u | xargs -I {} cp --parents -L {} /image/

FROM scratch
COPY --from=build /image/ /
# glibc raises the size from which it asks the kernel for memory of its own whenever such memory is
# freed, and then keeps what large tables left behind when they grew. With a fixed size, memory in
# use at 20,000 Services is a sixth less (make bench).
ENV GLIBC_TUNABLES=glibc.malloc.arena_max=2:glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072
# On the path of kubectl exec, too.
ENTRYPOINT ["/usr/bin/pointsman"]
