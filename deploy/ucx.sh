#!/usr/bin/env bash
# Fetches a UCX that reaches GPU memory (cuda_ipc; no RDMA) from its wheel: Debian's was built without CUDA. Usage: ucx.sh FOLDER
# Workers use it with LD_LIBRARY_PATH=FOLDER/libucx/lib and kv.transports=tcp,cuda_ipc,cuda_copy,self; baton-prefill and
# baton-decode set UCX_MEMTYPE_CACHE=n, without which it takes GPU memory for the host's.
set -euo pipefail

root=${1:?usage: ucx.sh FOLDER}
if [ -d "$root/libucx/lib" ]; then exit 0; fi
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
echo "installing UCX 1.22.0 with CUDA from its wheel"
python3 -m pip install -q --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore --target "$stage" libucx-cu13==1.22.0
mkdir -p "$root"
mv "$stage/libucx" "$stage/libucx_cu13.libs" "$root"
