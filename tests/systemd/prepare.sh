#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs in the guest before systemd does: installs the package, and a disk that is to be there at boot.
#   sh tests/systemd/prepare.sh PACKAGE
set -eu
dpkg -i "$1"

# Where there is a disk that outlives the guest, what stands behind the devices is on it.
if modprobe -q virtio_blk && [ -b /dev/vda ]; then
	blkid /dev/vda >/dev/null || mkfs.ext4 -q /dev/vda
	mount /dev/vda /srv
	mkdir -p /etc/systemd/system/ublkd@.service.d
	printf '[Unit]\nRequiresMountsFor=/srv\n' >/etc/systemd/system/ublkd@.service.d/srv.conf
fi
if [ ! -e /srv/disk.img ]; then
	truncate -s 64M /srv/disk.img
	mkfs.ext4 -q /srv/disk.img
fi
printf 'target = "loop"\nfile = "/srv/disk.img"\n' >/etc/ublkd/disk.toml
mkdir -p /mnt/disk
echo '/dev/ublk/disk /mnt/disk ext4 x-systemd.after=ublkd@disk.service,nofail 0 0' >/etc/fstab
systemctl --quiet enable ublkd@disk.service
# here nobody starts multi-user.target, which starts all that are enabled
mkdir -p /etc/systemd/system/lab.target.wants
ln -s /usr/lib/systemd/system/ublkd.target /etc/systemd/system/lab.target.wants/
