#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# isa_objects.sh NM COUNT FILE...: an object compiled with ISA flags must hold no weak symbol: the linker might keep that
# copy of an inline function for the whole program, which would then fail on a lesser CPU. COUNT such objects must be
# there, in libraries or by themselves.
set -euo pipefail
nm=$1 count=$2
shift 2
symbols=$("$nm" --print-file-name --demangle "$@" 2>/dev/null)
level='/?[a-z0-9_]+_(avx2|avx512|avx512vnni|avx512bf16|avx512vbmi2|amx|neon|neon_dot|neon_bf16)\.cpp\.o:'
objects=$(grep -oE "$level" <<<"$symbols" | sort -u || true)
found=$(grep -c . <<<"$objects" || true)
[ "$found" = "$count" ] || { echo "$count objects of SIMD levels expected, $found found in $*: $objects"; exit 1; }
weak=$(grep -E "$level *[0-9a-f]* +[VvWwu] " <<<"$symbols" || true)
if [ -n "$weak" ]; then
  echo "weak symbols in objects of a SIMD level:"
  echo "$weak"
  exit 1
fi
echo "$found objects of SIMD levels, no weak symbol"
