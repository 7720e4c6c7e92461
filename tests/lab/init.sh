#!/bin/sh
# Process 1 of the lab's guest. The kernel gives it LAB_DIR, the folder session.py made
# on the host: `settings` (shell variables), `fstab` and `job`. Every process started here
# costs up to a tenth of a second under emulation, hence the few and long commands.
#
# What it tells the host goes out on port 1, one line each: control.py knows the words.

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
. "$LAB_DIR/settings"

mount -n -t devtmpfs devtmpfs /dev
until set -- /dev/vport*p1 && [ -c "$1" ]; do sleep 0.05; done
port=${1%1}
exec 3<>"${port}1" </dev/null >/dev/kmsg 2>&1
echo init >&3
echo "lab: init"

fail() {
	echo "fail $*" >&3
	sleep 60
}

# The host's root is mounted read-only; what is written goes to an overlay in memory.
mount -n -t tmpfs -o mode=755 overlay /run || fail "no tmpfs on /run"
mkdir /run/upper /run/work /run/root
LD_LIBRARY_PATH=$LAB_TOOLS "${LAB_TOOLS:+$LAB_TOOLS/}modprobe" ${LAB_TREE:+-d "$LAB_TREE"} overlay
mount -n -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work lab /run/root ||
	fail "no overlay over the host's root"
cd /run/root || fail "no root"
mount -n -t tmpfs -o mode=755 run run || fail "no tmpfs on the new /run"
mkdir -p run/host run/lab
pivot_root . run/host || fail "pivot_root"
mount -n -t proc proc /proc || fail "no /proc"
mount -a -T "/run/host$LAB_DIR/fstab"
cd / || fail "no root"

if [ -n "$LAB_TOOLS" ]; then
	cp -P "/run/host$LAB_TOOLS"/* /usr/sbin/
	[ -e /usr/sbin/libkmod.so.2 ] && mv /usr/sbin/libkmod.so.2 /usr/lib/
fi
echo lab >/proc/sys/kernel/hostname
echo "127.0.1.1 lab" >>/etc/hosts
echo 7 >/proc/sys/kernel/printk
ip link set lo up
[ -z "$LAB_UBLK" ] || modprobe ublk_drv
mkfifo /run/lab/out /run/lab/err
cp "/run/host$LAB_DIR/job" /run/lab/job || fail "no job"
[ -z "$LAB_SYSTEMD" ] || cp -r "/run/host$LAB_DIR/systemd" "/run/host$LAB_DIR/before" /run/lab/
cp -P "/run/host$LAB_DIR/dev"/* /dev/
mknod /dev/loop-control c 10 237 # opening it loads the module
umount -l /run/host
unset LAB_DIR

# Nothing below may end by the TERM that goes to what the job left behind.
trap '' TERM HUP

# Ports can be opened once, and a job may well open /dev/stderr again: hence the pipes.
if [ -z "$LAB_SHELL" ]; then
	cat /run/lab/out >"${port}2" &
	out=$!
	cat /run/lab/err >"${port}3" &
	err=$!
fi

dump() {
	echo 8 >/proc/sys/kernel/printk
	echo "lab: blocked tasks"
	echo w >/proc/sysrq-trigger
	echo "lab: all tasks"
	echo t >/proc/sysrq-trigger
	echo "lab: end of tasks"
	echo dumped >&3
}

listen() {
	[ -z "$LAB_SYSTEMD" ] || trap - TERM # systemd waits for whoever stays
	while read -r word rows columns <&3; do
		case $word in
		deadline) dump ;;
		size) stty -F /dev/hvc0 rows "$rows" cols "$columns" ;;
		esac
	done
}
listen &

echo job >&3
[ -z "$LAB_SYSTEMD" ] || . /run/lab/systemd/boot.sh # it does not come back
# Not in the background: a shell has those ignore SIGINT, and all that they start.
if [ -n "$LAB_SHELL" ]; then
	(trap - TERM HUP && exec setsid -c /run/lab/job </dev/hvc0 >/dev/hvc0 2>&1 3>&-)
else
	(trap - TERM HUP && exec setsid /run/lab/job >/run/lab/out 2>/run/lab/err 3>&-)
fi
echo "exit $?" >&3
kill -TERM -1
[ -n "$LAB_SHELL" ] || wait "$out" "$err"
echo drained >&3
while :; do sleep 60; done
