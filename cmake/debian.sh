# SPDX-License-Identifier: Apache-2.0
# Sourced by bootstrap.sh and .ci/run: Debian packages by name, and the number of jobs this machine takes.

# Compiler, generator and the libraries the library itself, its tests and its examples are built with.
debian_build="cmake ninja-build ccache pkg-config libfmt-dev nlohmann-json3-dev libeigen3-dev libxtensor-dev catch2
  libcli11-dev"

# need PACKAGE...: installs what is missing when run as root or where sudo asks for no password; names it and fails
# otherwise. On systems without apt-get nothing is done: CMake names the library it misses.
need() {
  command -v apt-get >/dev/null || return 0
  local missing=() package as_root=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      echo "Debian packages are missing; install them with: sudo apt-get install ${missing[*]}" >&2
      return 1
    fi
    as_root=(sudo -n)
  fi
  echo "installing ${missing[*]}"
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600)
  if [ -z "${debian_lists_fresh-}" ]; then
    "${apt[@]}" update </dev/null || return 1
    debian_lists_fresh=1
  fi
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

# One job per core, and no more than one per 1.5 GiB of memory: a large test file takes about 1 GiB to compile.
jobs_here() {
  local cores memory
  cores=$(nproc)
  memory=$(awk '/^MemTotal/ { print int($2 / 1572864) }' /proc/meminfo 2>/dev/null || echo "$cores")
  [ "$memory" -ge 1 ] || memory=1
  echo $((memory < cores ? memory : cores))
}
