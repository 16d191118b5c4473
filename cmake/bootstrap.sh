#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# bootstrap.sh demo | test: sets everything up on a fresh Debian machine (missing packages are installed as root or
# through sudo, and named otherwise), configures, builds, and then compresses and runs the embedded model, or runs the
# whole test suite. Works from any folder; a second run builds only what changed. Build tree: build/release. Report of
# the demo: build/demo/report.html.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR
. "$root/cmake/debian.sh"
build=$root/build/release

say() { echo "== $*"; }

case ${1-} in
  demo | test) ;;
  *)
    echo "usage: ${0##*/} demo | test" >&2
    exit 2
    ;;
esac

compiler=()
command -v "${CXX:-c++}" >/dev/null || compiler=(g++)
# shellcheck disable=SC2086
need $debian_build "${compiler[@]}"

unset CCACHE_BASEDIR  # relative paths would keep build trees of different depth from sharing
export CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=locale
say "configure ${build#"$root/"}"
mkdir -p "$build"
(cd "$root" && cmake --preset release ${BLOCKPACK_CMAKE_ARGS-}) >"$build/configure.log" 2>&1 ||
  { cat "$build/configure.log"; exit 1; }

jobs=$(jobs_here)
if [ "$1" = test ]; then
  say "build with $jobs jobs"
  cmake --build "$build" --parallel "$jobs"
  say "test"
  cd "$build"
  exec ctest --output-on-failure --no-tests=error --parallel "$jobs"
fi

say "build with $jobs jobs"
cmake --build "$build" --parallel "$jobs" --target compress_model
say "demo"
mkdir -p "$root/build/demo"
cd "$root/build/demo"
"$build/examples/compress_model" demo
