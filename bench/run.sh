#!/usr/bin/env bash
# Runs every benchmark in BIN_DIR and appends rows to bench/results. Usage: bench/run.sh BIN_DIR
set -euo pipefail
bin=${1:?folder of the built programs}
cd "$(dirname "$0")/.."
mkdir -p bench/results
commit=$(git rev-parse --short HEAD)
machine="$(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)"
for bench in "$bin"/*_bench; do
  [ -x "$bench" ] || continue
  name=$(basename "$bench")
  out=bench/results/${name%_bench}.csv
  if [ "$name" = kernel_bench ]; then  # a GPU's rows carry its name, and need one
    nvidia-smi -L > /dev/null 2>&1 || continue
    echo "$name -> bench/results/kernels.csv"
    "$bench" --commit "$commit" --csv bench/results/kernels.csv
    continue
  fi
  echo "$name -> $out"
  "$bench" --machine "$machine" --commit "$commit" --csv "$out"
done
out=bench/results/cluster.csv
echo "cluster_bench.py -> $out"
bench/cluster/cluster_bench.py --bin "$bin" --machine "$machine" --commit "$commit" --csv "$out"
out=bench/results/router.csv
echo "router_bench.py -> $out, bench/results/tokenizer.csv"
bench/router/router_bench.py --bin "$bin" --machine "$machine" --commit "$commit"
