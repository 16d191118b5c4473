#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# one_executor.sh NM LIBRARY.a: threads are started by execution.cpp alone. Whatever else calls the OpenMP runtime (Eigen
# does in every product, where it is compiled with OpenMP and not told otherwise) takes threads that Execution does not
# grant.
set -euo pipefail
symbols=$("$1" --print-file-name --undefined-only "$2" 2>/dev/null)
[ -n "$symbols" ] || { echo "$2 has no symbols"; exit 1; }
others=$(grep -E ' U (GOMP_|__kmpc_|omp_)' <<<"$symbols" | grep -v 'execution\.cpp\.o:' || true)
if [ -n "$others" ]; then
  echo "calls of the OpenMP runtime outside of execution.cpp:"
  echo "$others"
  exit 1
fi
echo "execution.cpp alone calls the OpenMP runtime"
