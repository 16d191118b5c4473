#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# headers_alone.sh INCLUDE_DIR COMPILER FLAG...: every public header compiles by itself, included twice, with the compiled
# backend and, where its text asks for it, headers only; all of them together leave no macro behind whose name does not
# start with BLOCKPACK_. Nothing is written.
set -uo pipefail
export INCLUDE=$1
shift
export COMMAND="$* -std=c++20 -x c++ -I$INCLUDE"

check() {
  local header=$1 status=0 mode modes=("")
  case $header in
    blockpack/io/* | blockpack/io.hpp | blockpack/recipe*) ;;
    *) ! grep -q BLOCKPACK_HEADERS_ONLY "$INCLUDE/$header" || modes+=(-DBLOCKPACK_HEADERS_ONLY=1) ;;
  esac
  for mode in "${modes[@]}"; do
    printf '#include "%s"\n#include "%s"\n' "$header" "$header" |
      $COMMAND $mode -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Werror -fsyntax-only - ||
      { echo "$header does not compile alone ($COMMAND $mode)"; status=1; }
  done
  return $status
}
export -f check

headers=$(cd "$INCLUDE" && find blockpack -name '*.hpp' | sort)
[ -n "$headers" ] || { echo "no headers in $INCLUDE"; exit 1; }
xargs -P "$(nproc)" -I{} bash -c 'check {}' <<<"$headers" || exit 1

# Macros defined between line markers of our own files, and never undefined.
macros=$(printf '#include "%s"\n' $headers | $COMMAND -E -dD - | awk -v own="$INCLUDE/" '
  /^# [0-9]+ "/ { ours = index($0, "\"" own) > 0; next }
  ours && /^#define / { name = $2; sub(/\(.*/, "", name); kept[name] = 1 }
  /^#undef / { delete kept[$2] }
  END { for (name in kept) if (name !~ /^BLOCKPACK_/) print name }')
[ -z "$macros" ] || { echo "the headers leave macros behind:" $macros; exit 1; }
echo "$(wc -l <<<"$headers") headers compile alone"
