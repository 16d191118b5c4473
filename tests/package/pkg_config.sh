#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pkg_config.sh CXX STAGE LIBDIR MAIN_CPP WORK: builds and runs a program with the flags of blockpack.pc, then copies the
# installed tree elsewhere and does it again with the copy alone.
set -euo pipefail
cxx=$1 stage=$2 libdir=$3 main=$4 work=$5
rm -rf "$work"
mkdir -p "$work"
cp -r "$stage" "$work/moved tree"
ln -s "$work/moved tree" "$work/moved"  # the compiler line below splits at spaces

use() {  # use PREFIX: must take nothing from another prefix
  export PKG_CONFIG_PATH=$1/$libdir/pkgconfig
  local flags
  flags=$(pkg-config --cflags --libs blockpack)
  case $flags in *"$1"*) ;; *) echo "flags do not point into $1: $flags"; exit 1 ;; esac
  # shellcheck disable=SC2086
  "$cxx" -std=c++20 "$main" $flags -o "$work/program"
  LD_LIBRARY_PATH=$1/$libdir "$work/program"
}
use "$stage"
mv "$stage" "$stage.away"
trap 'mv "$stage.away" "$stage"' EXIT
use "$work/moved"
pkg-config --exists "blockpack >= 0.1" || { echo "the version is missing"; exit 1; }
