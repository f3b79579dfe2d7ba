#!/usr/bin/env bash
# Packs the programs of a build with the shared libraries that a plain machine lacks. Usage: bundle.sh BIN OUT.tar.xz
# Unpacked anywhere on a machine with glibc 2.36 or newer, bin/baton up works: programs look for libraries in ../lib.
set -euo pipefail

bin=${1:?usage: bundle.sh BIN OUT.tar.xz}
out=${2:?usage: bundle.sh BIN OUT.tar.xz}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/bin" "$stage/lib"
cp "$bin"/baton "$bin"/baton-router "$bin"/baton-prefill "$bin"/baton-decode "$stage/bin/"
# The C and C++ runtimes are the machine's own.
own='/(ld-linux[^/]*|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s)\.so'
ldd "$stage"/bin/* | awk '/=> \//{print $3}' | sort -u | grep -vE "$own" | xargs -I{} cp -L {} "$stage/lib/"
# UCX loads what it finds beside itself: RDMA among it, with what that needs.
modules=$(dirname "$(ldd "$bin/baton-decode" | awk '/libucs/{print $3}')")/ucx
if [ -d "$modules" ]; then
  mkdir "$stage/lib/ucx"
  cp -L "$modules"/*.so.0 "$stage/lib/ucx/"
  ldd "$stage"/lib/ucx/*.so.0 | awk '/=> \//{print $3}' | sort -u | grep -vE "$own" | xargs -I{} cp -Ln {} "$stage/lib/"
fi
strip "$stage"/bin/*
tar -cJf "$out" -C "$stage" bin lib
du -h "$out"
