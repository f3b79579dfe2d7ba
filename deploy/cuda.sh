#!/usr/bin/env bash
# Makes a CUDA 13.0 toolkit without a driver or GPU, from NVIDIA's wheels: compiler, runtime and headers. Usage: cuda.sh FOLDER
set -euo pipefail

root=${1:?usage: cuda.sh FOLDER}
if [ -x "$root/bin/nvcc" ] && [ -e "$root/lib64" ]; then exit 0; fi
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
echo "installing the CUDA 13.0 compiler from wheels"
python3 -m pip install -q --no-deps --no-compile --disable-pip-version-check --root-user-action=ignore --target "$stage" \
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
rm -rf "$root"
mkdir -p "$(dirname "$root")"
mv "$stage/nvidia/cu13" "$root"
ln -sfn lib "$root/lib64"
