#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Renders a report in headless Chromium and fails on a script error, an empty plot or an empty entropy map.
#   check.sh report.html [picture.png]     exit code 0: good, 1: bad, 77: no Chromium here
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: check.sh report.html [picture.png]"; exit 1; }
[ -r "$1" ] || { echo "check: cannot read '$1'"; exit 1; }
page=$(realpath "$1")
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
[ -n "$browser" ] || { echo "check: no Chromium on this machine, the report was not rendered"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
render() {
  timeout 120 "$browser" --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --disable-dev-shm-usage --user-data-dir="$work/profile" \
    --virtual-time-budget=5000 "$@" "file://$page" 2>"$work/log"
}
render --dump-dom >"$work/dom" || { echo "check: the browser failed:"; tail -5 "$work/log"; exit 1; }
field() { grep -o "<body[^>]*>" "$work/dom" | grep -o "data-$1=\"[^\"]*\"" | cut -d'"' -f2 || true; }
if [ $# -ge 2 ]; then
  render --hide-scrollbars --window-size=1000,2300 --screenshot="$(realpath -m "$2")" >/dev/null
fi
errors=$(field errors) ink=$(field plot-ink) points=$(field point-ink) cells=$(field map-cells)
[ "${errors:-none}" = 0 ] || { echo "check: script errors: ${errors:-the page did not start}; $(field last-error)"; exit 1; }
[ "${ink:-0}" -gt 2000 ] && [ "${points:-0}" -gt 100 ] || { echo "check: the plot is empty (${ink:-0} drawn pixels, ${points:-0} of points)"; exit 1; }
[ "${cells:-0}" -gt 0 ] || { echo "check: the entropy map is empty"; exit 1; }
echo "check: $(basename "$page") renders: plot $ink pixels, points $points pixels, map $cells tiles, no script errors"
