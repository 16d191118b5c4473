#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# exported_symbols.sh LIBRARY.so: everything the shared library exports must be a name of blockpack that a public header
# marks BLOCKPACK_API (instances of templates come with their result); kernels, helpers of src, fmt, nlohmann_json and the
# standard library stay hidden.
set -euo pipefail
library=$1
list=$(nm -D --defined-only --demangle "$library" | sed -E 's/^[0-9a-f]* *//')
[ -n "$list" ] || { echo "nothing is exported"; exit 1; }
wrong=$(grep -vE '^[A-Za-z] (typeinfo (name )?for |vtable for |(void|bool) )?blockpack::v[0-9_]+::' <<<"$list" || true)
wrong+=$(grep -E 'blockpack::v[0-9_]+::kernels::' <<<"$list" || true)
if [ -n "$wrong" ]; then
  echo "exported, but not part of the public interface:"
  echo "$wrong"
  exit 1
fi
echo "$(wc -l <<<"$list") symbols are exported, all of them public"
