#!/bin/sh
# SPDX-License-Identifier: MIT
# Puts what build.sh made where it belongs, or takes it away again.
#   DESTDIR= PREFIX=/usr/local sh packaging/install.sh FOLDER PYTHON
#   DESTDIR= PREFIX=/usr/local sh packaging/install.sh --remove
set -eu
prefix=${PREFIX:-/usr/local}
root=${DESTDIR:-}
case $prefix in /*) ;; *) echo "install: PREFIX must be an absolute path" >&2; exit 2 ;; esac
# it stands in units, in a script of theirs, and in the command: each would quote it otherwise
case $prefix in *[!A-Za-z0-9/._+~-]*)
	echo "install: PREFIX may have letters, digits and / . _ + ~ - only" >&2
	exit 2
	;;
esac

share=$prefix/share
units=$prefix/lib/systemd/system
zsh=$share/zsh/site-functions
[ "$prefix" != /usr ] || zsh=$share/zsh/vendor-completions

put() { # mode, file, where it will be
	install -D -m "$1" "$2" "$root$3"
}

fill() { # file with @SBINDIR@ in it, where it will be
	mkdir -p "$root${2%/*}"
	sed "s|@SBINDIR@|$prefix/sbin|" "$1" >"$root$2"
	chmod 0644 "$root$2"
}

reload() { # only what runs on this very machine
	[ -z "$root" ] || return 0
	[ ! -d /run/systemd/system ] || systemctl daemon-reload
	[ ! -e /run/udev/control ] || udevadm control --reload
}

if [ "$1" = --remove ]; then
	rm -rf "$root$prefix/lib/ublkd"
	rm -f "$root$prefix/sbin/ublkd" "$root$units/ublkd@.service" "$root$units/ublkd.target" \
		"$root$units/ublkd-release.service" \
		"$root$units/multi-user.target.wants/ublkd.target" \
		"$root$prefix/lib/udev/rules.d/60-ublkd.rules" "$root$prefix/lib/modules-load.d/ublkd.conf" \
		"$root$prefix/lib/tmpfiles.d/ublkd.conf" "$root$zsh/_ublkd" \
		"$root$share/bash-completion/completions/ublkd" \
		"$root$share/fish/vendor_completions.d/ublkd.fish"
	while read -r page _; do
		rm -f "$root$share/man/man${page##*.}/$page"
	done <packaging/man.list
	rmdir "$root/etc/ublkd" 2>/dev/null || true # device files are the administrator's
	reload
	exit 0
fi

built=$1 python=$2
rm -rf "$root$prefix/lib/ublkd"
mkdir -p "$root$prefix/lib/ublkd" "$root$prefix/sbin"
cp -R "$built/lib/." "$root$prefix/lib/ublkd"
"$python" -m compileall -q -s "$root" "$root$prefix/lib/ublkd"
cat >"$root$prefix/sbin/ublkd" <<END
#!$("$python" -c 'import sys; print(sys._base_executable)') -I
"""The command, with the packages that were installed with it; nothing of the caller's."""

import sys

sys.path.insert(0, "$prefix/lib/ublkd")

from ublkd.__main__ import main

main()
END
chmod 0755 "$root$prefix/sbin/ublkd"

fill systemd/ublkd@.service.in "$units/ublkd@.service"
fill systemd/ublkd-release.service.in "$units/ublkd-release.service"
put 0644 systemd/ublkd.target "$units/ublkd.target"
mkdir -p "$root$units/multi-user.target.wants"
ln -sf ../ublkd.target "$root$units/multi-user.target.wants/ublkd.target"
for rules in systemd/*.rules; do
	[ ! -e "$rules" ] || put 0644 "$rules" "$prefix/lib/udev/rules.d/${rules##*/}"
done
put 0644 systemd/modules-load.conf "$prefix/lib/modules-load.d/ublkd.conf"
put 0644 systemd/tmpfiles.conf "$prefix/lib/tmpfiles.d/ublkd.conf"
put 0644 "$built/completion/bash" "$share/bash-completion/completions/ublkd"
put 0644 "$built/completion/zsh" "$zsh/_ublkd"
put 0644 "$built/completion/fish" "$share/fish/vendor_completions.d/ublkd.fish"
for page in "$built"/man/*; do
	put 0644 "$page" "$share/man/man${page##*.}/${page##*/}"
done
mkdir -p "$root/etc/ublkd"
chmod 0700 "$root/etc/ublkd" # a URI may have a password, and who can open it can lock it
reload
