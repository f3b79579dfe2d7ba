#!/usr/bin/env bash
# Runs the libFuzzer programs of a folder, as many at once as there are cores, each on its seeds and what it found before.
# Usage, in the project's root: tests/fuzz/run.sh BUILD_FOLDER SECONDS [TARGET...]   (build/fuzz: bin/ and seeds/; corpus/ and
# findings/ are written there). Prints executions and executions/s of each; fails when one has a finding.
set -euo pipefail
folder=$1
seconds=$2
shift 2
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for program in "$folder"/bin/*_fuzz; do targets+=("$(basename "$program")"); done
fi
findings=$folder/findings
mkdir -p "$findings" "$folder/corpus"
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=1} UBSAN_OPTIONS=print_stacktrace=1

run_one() {
  local target=$1 corpus=$folder/corpus/$1 log=$findings/$1.log status=0
  mkdir -p "$corpus" "$folder/seeds/$target"
  "$folder/bin/$target" -max_total_time="$seconds" -print_final_stats=1 -timeout=20 -rss_limit_mb=4096 -max_len=65536 \
    -artifact_prefix="$findings/$target-" "$corpus" "$folder/seeds/$target" >"$log" 2>&1 || status=$?
  local units rate what=none
  units=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  rate=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
  if [ "$status" -ne 0 ]; then what="exit $status, see $log"; fi
  printf '%-24s %12s %8s  %s\n' "$target" "${units:-?}" "${rate:-?}" "$what"
  return "$status"
}

printf '%-24s %12s %8s  %s\n' target executions per_s findings
running=()
failed=0
for target in "${targets[@]}"; do
  if [ ${#running[@]} -ge "${JOBS:-$(nproc)}" ]; then
    wait "${running[0]}" || failed=1
    running=("${running[@]:1}")
  fi
  run_one "$target" &
  running+=($!)
done
for job in "${running[@]}"; do wait "$job" || failed=1; done
exit $failed
