#!/usr/bin/env bash
# Packs the programs of a build with the shared libraries that a plain machine lacks. Usage: bundle.sh BIN OUT.tar.xz [UCX]
# Unpacked anywhere on a machine with glibc 2.36 or newer, bin/baton up works: programs look for libraries in ../lib.
# UCX: folder of deploy/ucx.sh; then ucx-cuda/ holds a second UCX that reaches GPU memory (LD_LIBRARY_PATH=.../ucx-cuda/lib).
set -euo pipefail

bin=${1:?usage: bundle.sh BIN OUT.tar.xz [UCX]}
out=${2:?usage: bundle.sh BIN OUT.tar.xz [UCX]}
ucx=${3:-}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/bin" "$stage/lib"
for program in baton baton-router baton-prefill baton-decode baton-worker; do cp "$bin/$program" "$stage/bin/"; done
strip "$stage"/bin/*
# The C and C++ runtimes are the machine's own, and OpenSSL 3.
own='/(ld-linux[^/]*|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libssl|libcrypto)\.so'
ldd "$stage"/bin/* | awk '/=> \//{print $3}' | sort -u | grep -vE "$own" | xargs -I{} cp -L {} "$stage/lib/"
# UCX loads what it finds beside itself: RDMA among it, with what that needs.
modules=$(dirname "$(ldd "$bin/baton-worker" | awk '/libucs/{print $3}')")/ucx
if [ -d "$modules" ]; then
  mkdir "$stage/lib/ucx"
  cp -L "$modules"/*.so.0 "$stage/lib/ucx/"
  ldd "$stage"/lib/ucx/*.so.0 | awk '/=> \//{print $3}' | sort -u | grep -vE "$own" | xargs -I{} cp -Ln {} "$stage/lib/"
fi
if [ -n "$ucx" ]; then
  mkdir -p "$stage/ucx-cuda/lib/ucx"
  cp "$ucx"/libucx/lib/libuc[mpst].so.0 "$ucx"/libucx/lib/libucs_signal.so.0 "$stage/ucx-cuda/lib/"
  cp "$ucx"/libucx/lib/ucx/{libucm_cuda,libuct_cuda,libuct_cma}.so.0 "$stage/ucx-cuda/lib/ucx/"
  strip --strip-unneeded "$stage"/ucx-cuda/lib/*.so.0 "$stage"/ucx-cuda/lib/ucx/*.so.0
fi
echo "programs, stripped: $(cat "$stage"/bin/* | wc -c | awk '{printf "%.1f MiB", $1 / 1048576}')"
(cd "$stage/bin" && ls -l | awk 'NR > 1 {printf "  %-14s %9d bytes\n", $9, $5}')
XZ_OPT=-9e tar -cJf "$out" -C "$stage" $(cd "$stage" && ls)
du -h "$out"
