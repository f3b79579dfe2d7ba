#!/usr/bin/env bash
# Installs the Debian 12 packages of the named groups that are missing: build, test, clients, npm, lint, cuda, fuzz. Says what it does.
set -euo pipefail

# The groups, named by the arguments.
# shellcheck disable=SC2034
build=(ca-certificates ccache cmake g++ libabsl-dev libboost1.81-dev libcivetweb-dev libcli11-dev libgrpc++-dev libicu-dev liblzma-dev libprotobuf-dev
       libsimdjson-dev libspdlog-dev libssl-dev libucx-dev libyaml-cpp-dev make ninja-build nlohmann-json3-dev pkg-config python3
       prometheus-cpp-dev protobuf-compiler protobuf-compiler-grpc libgtest-dev libgmock-dev mold git)
# shellcheck disable=SC2034
test=(curl openssl procps prometheus xz-utils)
# shellcheck disable=SC2034
cuda=(patchelf python3-pip)
# shellcheck disable=SC2034
clients=(chromium fonts-dejavu-core python3-venv)
# shellcheck disable=SC2034
npm=(nodejs npm)
# shellcheck disable=SC2034
lint=(clang-format-14 clang-tidy-14 python3-venv shellcheck)

# shellcheck disable=SC2034
fuzz=(clang-16 libclang-rt-16-dev)

missing=()
for group in "$@"; do
  declare -n packages=$group
  for package in "${packages[@]}"; do
    if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then missing+=("$package"); fi
  done
done
# llguidance (third_party/llg_c) needs Rust 1.85: Debian's rustc is older, its rustc-web is not.
has_rust() {
  local version
  version=$(PATH=$PATH:${HOME:-/root}/.cargo/bin cargo --version 2>/dev/null | cut -d' ' -f2)
  [ -n "$version" ] && [ "$(printf '1.85\n%s\n' "$version" | sort -V | head -n1)" = 1.85 ]
}
if [[ " $* " == *" build "* ]] && ! has_rust; then missing+=(cargo-web rustc-web); fi
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

sudo=()
if [ "$(id -u)" -ne 0 ]; then sudo=(sudo); fi
echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
# A package may bring a service that wants to start; nothing here needs one.
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "installed"
