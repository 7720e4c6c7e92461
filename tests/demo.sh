#!/bin/sh
# SPDX-License-Identifier: MIT
# The main job, once, for real: a sparse file becomes a disk, carries a filesystem with a real
# tree, survives a check and a remount, and is verified by fio. Needs root and the ublk driver.
# LEASE=KIND insists on a lease; WORK is where the disk's file goes.
set -eu

work=$(mktemp -d "${WORK:-/tmp}/ublkd-demo.XXXXXX")
tree=${TREE:-/usr/include/linux}
mnt=$work/mnt
disk=$work/disk.img
node=
step() { echo "demo: $*"; }

clean_up() {
	status=$?
	trap - EXIT INT TERM
	mountpoint -q "$mnt" && umount "$mnt"
	[ -z "$node" ] || ublkd del "$node"
	rm -rf "$work"
	[ "$status" = 0 ] || echo "demo: failed"
	exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

checksums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
member() { python3 -c "import json, sys; print(json.load(sys.stdin)$1)"; }

mkdir "$mnt"
truncate -s 512M "$disk"
step "a sparse file of $(stat -c %s "$disk") bytes becomes a disk"
node=$(ublkd add --target loop --file "$disk" --name demo ${LEASE:+--lease "$LEASE"})
lease=$(ublkd show "$node" --json | member '["lease"]')
step "$node is there, lease $lease"

step "ext4 on it, and $tree copied in"
mkfs.ext4 -q "$node"
mount "$node" "$mnt"
cp -a "$tree" "$mnt/tree"
checksums "$tree" >"$work/before"
umount "$mnt"

step "checked, mounted again and compared"
e2fsck -fn "$node"
mount "$node" "$mnt"
checksums "$mnt/tree" >"$work/after"
cmp "$work/before" "$work/after"
step "$(wc -l <"$work/after") files are the same"
umount "$mnt"

step "fio writes and reads it at random, 4k to 1M, 32 at once, and verifies every byte written"
(cd "$work" && fio --name=verify --filename="$node" --rw=randrw --rwmixread=30 --bsrange=4k-1m \
	--iodepth=32 --ioengine=io_uring --direct=1 --size=256M --verify=crc32c --verify_fatal=1 \
	--do_verify=1 --serialize_overlap=1 --verify_state_save=0 --output-format=json \
	--output=fio.json)
verified=$(member '["jobs"][0]["write"]["io_bytes"]' <"$work/fio.json")

ublkd list
ublkd del "$node"
node=
echo "demo: ok kernel=$(uname -r) lease=$lease verified=$verified bytes"
