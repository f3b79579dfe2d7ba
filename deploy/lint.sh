#!/usr/bin/env bash
# Checks the shell scripts and the Kubernetes manifests.
set -euo pipefail
cd "$(dirname "$0")/.."
shellcheck deploy/*.sh bench/*.sh .ci/run
venv=build/lint-venv
if [ ! -x $venv/bin/kubernetes-validate ]; then
  python3 -m venv $venv
  $venv/bin/pip install --quiet kubernetes-validate==1.37.0
fi
$venv/bin/kubernetes-validate -k 1.34 --strict deploy/kubernetes/*.yaml
