#!/bin/sh
# Builds the eBPF programs into object/, or into the directory given. Needs a Rust compiler with a core library for bpfel and bpf-linker:
# ./x ebpf installs both from Debian and crates.io. The result depends on neither the directory nor the user.
set -eu
cd "$(dirname "$0")/programs"
root=$(cd ../.. && pwd)
target=${CARGO_TARGET_DIR:-$root/target}/ebpf
registry=${CARGO_HOME:-$HOME/.cargo}
RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO_TARGET_DIR="$target" \
    RUSTFLAGS="-C debuginfo=2 -C link-arg=--btf --remap-path-prefix=$root=/mesonet --remap-path-prefix=$registry=/cargo" \
    /usr/bin/cargo build --quiet --locked --release --target bpfel-unknown-none
llvm=/usr/lib/llvm-22/bin
names=$(mktemp)
for program in socket packet meter; do
    built=$target/bpfel-unknown-none/release/$program
    # Names of functions hold a hash of the directory that they were built in.
    "$llvm/llvm-nm" --format=just-symbols "$built" | grep '^_R' | sed 's/.*/& &/; s/ \(.*\)Cs[0-9A-Za-z]*_/ \1C/' >"$names" || true
    "$llvm/llvm-objcopy" --strip-debug --redefine-syms="$names" "$built" "${1:-../object}/$program.o"
done
rm -f "$names"
