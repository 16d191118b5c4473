#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fetches the images evaluate_vit reads beside the 512 it is shipped with: Debian's dataset-fashion-mnist (31 MB, MIT) by
# apt-get.
#
#     fetch_images.sh FOLDER
#
# FOLDER gets the 10,000 test images and the first 4096 training images, for calibration: 784 bytes an image, one byte a
# label. It appears whole or not at all; one that is there already is left alone.
set -euo pipefail

package=dataset-fashion-mnist
fail() { echo "fetch_images.sh: $*" >&2; exit 1; }

[ $# -eq 1 ] || fail "one argument needed, the folder to make"
if [ -e "$1" ]; then
  [ -f "$1/test_images.u8" ] || fail "$1 exists and holds no images; name a folder to make"
  echo "$1 is there already"
  exit 0
fi
for tool in apt-get dpkg-deb gzip sha256sum; do
  command -v "$tool" > /dev/null || fail "'$tool' is not installed (Debian is needed)"
done
mkdir -p "$(dirname "$1")"
work=$(mktemp -d "$(dirname "$1")/.fetch_images.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"  # apt-get downloads as a user of its own
work=$(cd "$work" && pwd)
mkdir "$work/download" "$work/images"
start=$PWD

cd "$work/download"
apt-get download "$package" > apt.log 2>&1 ||
  fail "apt-get download $package: $(grep -m 1 '^E:' apt.log) (run apt-get update?)"
dpkg-deb -x "$package"_*.deb debian
cd "$work/images"
data=$work/download/debian/usr/share/datasets/fashion-mnist
unpack() {  # SET COUNT NAME: images and labels without their headers of 16 and 8 bytes
  gzip -dc "$data/$1-images-idx3-ubyte.gz" > "$work/bytes"
  tail -c +17 "$work/bytes" | head -c $((784 * $2)) > "$3_images.u8" || [ $? -eq 141 ]
  gzip -dc "$data/$1-labels-idx1-ubyte.gz" > "$work/bytes"
  tail -c +9 "$work/bytes" | head -c "$2" > "$3_labels.u8" || [ $? -eq 141 ]
}
unpack t10k 10000 test
unpack train 4096 calibration
cp "$work/download/debian/usr/share/doc/$package/copyright" .
sha256sum --check --status - << END || fail "the images are not those that were recorded (SHA-256)"
c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a  test_images.u8
3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9  test_labels.u8
37961317c0e966cf64e88817670e2c5aaa30311ff0a88f3141e81bc5e672ee97  calibration_images.u8
c6bb6d1ba55a89f80316b3477189e9863836e34977cfbdbb50c236db2b254604  calibration_labels.u8
END
cd "$start"
mv -T "$work/images" "$1"
echo "$1: $(du -sh "$1" | cut -f 1)"
