#!/bin/sh
# SPDX-License-Identifier: MIT
# What the build and the lab need from the system: installs it as root on Debian and its kin,
# elsewhere says what is missing.
set -eu
PATH=$PATH:/usr/sbin:/sbin # where depmod and e2fsck are, for a user as well

missing=""
need() { # package, then a test that succeeds when it is there
	package=$1
	shift
	"$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_venv() { python3 -c 'import ensurepip, venv'; }

need gcc command -v gcc
need git command -v git
need pkg-config command -v pkg-config
need liburing-dev pkg-config --exists liburing
need python3-dev python3 -c 'import sysconfig, os; assert os.path.exists(sysconfig.get_path("include") + "/Python.h")'
need python3-venv has_venv
need qemu-system-x86 command -v qemu-system-x86_64
if command -v apt-get >/dev/null; then
	need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
fi
if ! [ -x /usr/lib/qemu/virtiofsd ] && ! [ -x /usr/libexec/virtiofsd ]; then
	if command -v apt-cache >/dev/null && [ -n "$(apt-cache madison virtiofsd 2>/dev/null)" ]; then
		missing="$missing virtiofsd"
	else
		missing="$missing qemu-system-common"
	fi
fi
need kmod command -v depmod
need udev command -v udevadm
need e2fsprogs command -v e2fsck
need xfsprogs command -v mkfs.xfs
need fio command -v fio
need dmsetup command -v dmsetup
need nbdkit command -v nbdkit
need qemu-utils command -v qemu-nbd
need nbd-server command -v nbd-server
need nbd-client command -v nbd-client # make bench-nbd
need dpkg-dev command -v dpkg-shlibdeps
need man-db command -v man
need groff command -v groff
need systemd test -x /lib/systemd/systemd
need udev command -v udevadm
need openssl command -v openssl
need libasan8 sh -c 'ls /usr/lib/gcc/*/*/libasan.so'

[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "installing:$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# shellcheck disable=SC2086 # a list of words
	apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
	echo "these packages are missing (Debian's names):$missing" >&2
	echo "hint: install them, or run this as root on Debian" >&2
	exit 3
fi
