#!/usr/bin/env bash
# Packs the programs of a build with the shared libraries that a plain machine lacks. Usage: bundle.sh BIN OUT.tar.xz [UCX]
# Unpacked anywhere on a machine with glibc 2.36 and OpenSSL 3 or newer, bin/baton up works: programs look for libraries in ../lib.
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
# A program's search path does not hold for the libraries of its libraries: each looks beside itself. The machine may have a UCX of its own.
patchelf --set-rpath "\$ORIGIN" "$stage"/lib/*.so*
if [ -d "$stage/lib/ucx" ]; then
  patchelf --set-rpath "\$ORIGIN:\$ORIGIN/.." "$stage"/lib/ucx/*.so*
  for module in "$stage"/lib/ucx/*; do rm -f "$stage/lib/$(basename "$module")"; done
fi
find "$stage/bin" "$stage/lib" -type f | while read -r file; do
  ldd "$file" | awk '/=> \//{print $3}' | while read -r path; do
    path=$(realpath -s "$path")
    if [ -e "$stage/lib/$(basename "$path")" ] && [[ "$path" != "$stage"/* ]]; then
      echo "$file would load $path of the machine" >&2
      exit 1
    fi
  done
done
if [ -n "$ucx" ]; then
  mkdir -p "$stage/ucx-cuda/lib/ucx"
  cp "$ucx"/libucx/lib/libuc[mpst].so.0 "$ucx"/libucx/lib/libucs_signal.so.0 "$stage/ucx-cuda/lib/"
  cp "$ucx"/libucx/lib/ucx/{libucm_cuda,libuct_cuda,libuct_cma}.so.0 "$stage/ucx-cuda/lib/ucx/"
  strip --strip-unneeded "$stage"/ucx-cuda/lib/*.so.0 "$stage"/ucx-cuda/lib/ucx/*.so.0
fi
size=$(cat "$stage"/bin/* | wc -c)
echo "programs, stripped: $(awk -v size="$size" 'BEGIN {printf "%.1f MiB", size / 1048576}')"
find "$stage/bin" -type f -printf '  %f %s bytes\n' | sort
if [ "$size" -gt $((20 << 20)) ]; then
  echo "the programs have $size bytes together, the limit is $((20 << 20))" >&2
  exit 1
fi
XZ_OPT=-9e tar -cJf "$out" -C "$stage" .
du -h "$out"
