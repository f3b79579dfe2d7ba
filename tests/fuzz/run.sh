#!/usr/bin/env bash
# Runs the libFuzzer programs of a folder, JOBS at once (as many as there are cores), each on its seeds, its dictionary and what it found before.
# Usage, in the project's root: tests/fuzz/run.sh BUILD_FOLDER SECONDS [TARGET...]   (build/fuzz: bin/ and seeds/; corpus/ and
# findings/ are written there). Prints seconds, executions, executions/s and coverage of each; fails when one has a finding, behind which
# that target goes on until its time is over or it has five.
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

# The last value that libFuzzer printed for a statistic, or 0.
stat_of() { sed -n "s/^stat::$1: *//p" "$2" | tail -n1 | grep . || echo 0; }

run_one() {
  local target=$1 corpus=$folder/corpus/$1 seeds=$folder/seeds/$1 log=$findings/$1.log options=()
  local begin=$SECONDS left=$seconds units=0 failed=0 status cov
  mkdir -p "$corpus" "$seeds"
  if [ -s "$seeds.dict" ]; then options=("-dict=$seeds.dict"); fi
  : >"$log"
  while [ "$left" -gt 0 ] && [ "$failed" -lt 5 ]; do
    status=0
    "$folder/bin/$target" -max_total_time="$left" -print_final_stats=1 -timeout=20 -rss_limit_mb=4096 -max_len=65536 "${options[@]}" \
      -artifact_prefix="$findings/$target-" "$corpus" "$seeds" >"$log.last" 2>&1 || status=$?
    units=$((units + $(stat_of number_of_executed_units "$log.last")))
    cat "$log.last" >>"$log"
    left=$((seconds - (SECONDS - begin)))
    if [ "$status" -ne 0 ]; then failed=$((failed + 1)); else break; fi
  done
  rm -f "$log.last"
  cov=$(grep -o ' cov: [0-9]*' "$log" | tail -n1 | cut -d' ' -f3) || true
  local spent=$((SECONDS - begin)) what=none
  if [ "$failed" -gt 0 ]; then what="$failed, see $log"; fi
  printf '%-22s %7d %12d %8d %8s  %s\n' "$target" "$spent" "$units" $((units / (spent > 0 ? spent : 1))) "${cov:-?}" "$what"
  [ "$failed" -eq 0 ]
}

printf '%-22s %7s %12s %8s %8s  %s\n' target seconds executions per_s coverage findings
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
