#!/bin/sh
# SPDX-License-Identifier: MIT
# Behind the shutdown that test_shutdown.py has prepared: nothing of ours is left, nobody had to be
# killed, and what was written is on the disks.
failed=0
check() { # what it shows, then a command that succeeds
	what=$1
	shift
	if said=$("$@" 2>&1); then
		echo "shutdown: $what: ok"
	else
		echo "shutdown: $what: FAILED: $said"
		failed=1
	fi
}
since_then() { dmesg | sed '1,/lab: the shutdown begins/d'; }
in_time() { ! since_then | grep -E "systemd.*(timed out|Killing)"; }
# the disk that nobody serves is taken away by force, below its filesystem
elsewhere() { grep -Ev "$(cat /srv/left.disk)|/mnt/left"; }
no_error() { ! since_then | grep -E "I/O error|(EXT4|JBD2).*(error|abort)|Failed.*(ublk|/mnt)" | elsewhere; }
no_device() { ! ls -d /sys/class/ublk-char/* 2>/dev/null; }
no_state() { ! ls /run/ublkd/* 2>/dev/null; }
clean() { ! dumpe2fs -h "$1" 2>&1 | grep needs_recovery && e2fsck -fn "$1"; }
holds() { debugfs -R "cat /written" "$1" 2>/dev/null | cmp - /srv/written; }

if [ -b /dev/vda ]; then
	check "the filesystem below all is clean" clean /dev/vda
	mount -o ro /dev/vda /srv
fi
check "nothing timed out" in_time
check "no error of a disk that was served" no_error
check "no device is left" no_device
check "nothing is remembered" no_state
for name in disk hand; do
	check "the filesystem of $name is clean" clean /srv/$name.img
	check "the filesystem of $name has what was written" holds /srv/$name.img
done
exit $failed
