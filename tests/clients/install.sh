#!/usr/bin/env bash
# install.sh FOLDER: the clients of run.py at pinned versions, each in a place of its own. What is there already stays.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?folder}
mkdir -p "$folder"
cd "$folder"

# venv NAME PIP-ARGUMENTS...: made anew if the arguments or the files that they name have changed.
venv() {
  local name=$1 wanted
  shift
  wanted="$* $(cat "$here"/requirements-*.txt | sha256sum)"
  if [ "$(cat "$name/installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "installing $name"
  rm -rf "$name"
  python3 -m venv "$name"
  "$name/bin/pip" install -q --disable-pip-version-check "$@"
  # Without its dependencies sglang does not bring torch.
  if [ "$name" = sglang ]; then "$name/bin/pip" install -q --disable-pip-version-check --no-deps sglang==0.5.23; fi
  echo "$wanted" >"$name/installed"
}

venv sdk -r "$here/requirements-sdk.txt"
venv sglang -r "$here/requirements-sglang.txt"
venv aiperf aiperf==0.13.0
mkdir -p node
if ! cmp -s "$here/package.json" node/package.json || [ ! -d node/node_modules/openai ]; then
  echo "installing the npm packages"
  cp "$here/package.json" node/package.json
  (cd node && npm install --silent --ignore-scripts --no-audit --no-fund)
fi
