#!/usr/bin/env bash
# progress.sh LABEL COMMAND...: runs a build command with one line of progress; shows its output only if it fails.
set -uo pipefail
label=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [ -t 1 ]; then
  "$@" 2>&1 | tee "$log" | grep --line-buffered -oE '^\[[0-9]+/[0-9]+\]' | while read -r step; do printf '\r%s %s ' "$label" "$step"; done
else
  echo "$label"
  "$@" >"$log" 2>&1
fi
status=${PIPESTATUS[0]}
if [ -t 1 ]; then printf '\r%s done          \n' "$label"; fi
if [ "$status" -ne 0 ]; then cat "$log"; fi
exit "$status"
