# In place of the job, read by init.sh: systemd becomes process 1, and the job one of its units.

[ -x /lib/systemd/systemd ] || fail "the host has no systemd"

# What keeps the two pipes open until systemd ends everybody.
(trap - TERM && exec sleep infinity >/run/lab/out 2>/run/lab/err 3>&-) &

# What tells systemd that it is in a container, where the host is one: it would not let mounts spread
# to the units that have mounts of their own.
rm -f /.dockerenv /run/.containerenv

# Nothing that the host has enabled, mounts or generates; of the rest, only what is of use here.
rm -rf /etc/systemd/system/* /etc/fstab
cd /lib/systemd/system-generators && for name in *; do
	[ "$name" = systemd-fstab-generator ] || rm -f "$name"
done
cd /
/run/lab/before >/run/lab/out 2>/run/lab/err 3>&- ||
	fail "what was to run before systemd ended with status $?"

mkdir -p /run/systemd/system
for name in systemd-binfmt systemd-hwdb-update systemd-journal-flush systemd-pstore \
	systemd-random-seed systemd-sysusers systemd-udev-trigger systemd-update-utmp; do
	ln -s /dev/null "/run/systemd/system/$name.service"
done
cp /run/lab/systemd/lab.target /run/lab/systemd/lab-job.service /run/systemd/system/
mkdir -p /lib/systemd/system-shutdown
cp /run/lab/systemd/last.sh /lib/systemd/system-shutdown/lab
[ -s /etc/machine-id ] || echo 6c61622d6c61622d6c61622d6c616200 >/etc/machine-id

exec 3>&-
exec /lib/systemd/systemd --unit=lab.target --show-status=no --log-target=kmsg --log-level=notice
