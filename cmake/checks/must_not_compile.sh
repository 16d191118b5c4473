#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# must_not_compile.sh CASE.cpp COMPILER FLAG...: the case compiles as it stands and is refused with -DWRONG, with a
# message that matches the line `// message: <extended regular expression>` of the case. A line `// flags: …` is added
# to the command of the wrong form.
set -uo pipefail
file=$1
shift
message=$(sed -n 's|^// message: ||p' "$file")
read -ra flags <<<"$(sed -n 's|^// flags: ||p' "$file")"
[ -n "$message" ] || { echo "$file: the line '// message: …' is missing"; exit 1; }
if ! "$@" -fsyntax-only "$file"; then
  echo "$file: the right form does not compile"
  exit 1
fi
if output=$("$@" "${flags[@]}" -DWRONG -fsyntax-only "$file" 2>&1); then
  echo "$file: the wrong form compiles"
  exit 1
fi
if ! grep -qE "$message" <<<"$output"; then
  echo "$file: refused, but without '$message':"
  echo "$output"
  exit 1
fi
echo "refused as it should be: $(grep -E "$message" <<<"$output" | head -n 1)"
