#!/bin/sh
# SPDX-License-Identifier: MIT
# Runs in the guest before systemd does: installs the package, and a disk that is to be there at boot.
#   sh tests/systemd/prepare.sh PACKAGE
set -eu
dpkg -i "$1"

truncate -s 64M /srv/disk.img
mkfs.ext4 -q /srv/disk.img
printf 'target = "loop"\nfile = "/srv/disk.img"\n' >/etc/ublkd/disk.toml
mkdir -p /mnt/disk
echo '/dev/ublk/disk /mnt/disk ext4 x-systemd.after=ublkd@disk.service,nofail 0 0' >/etc/fstab
systemctl --quiet enable ublkd@disk.service
# here nobody starts multi-user.target, which starts all that are enabled
mkdir -p /etc/systemd/system/lab.target.wants
ln -s /usr/lib/systemd/system/ublkd.target /etc/systemd/system/lab.target.wants/
