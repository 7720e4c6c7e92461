#!/bin/sh
# SPDX-License-Identifier: MIT
# A Debian package of what `make install` installs, in FOLDER. It fits this very release: Python's
# minor version and the libraries are those of the machine that builds it.
#   sh packaging/deb.sh FOLDER
set -eu
folder=$1
python=/usr/bin/python3 # Debian's own, whatever comes first on PATH
work=.cache/deb

sh packaging/build.sh "$work/built" "$python"
rm -rf "$work/root" "$work/debian"
umask 022
DESTDIR=$work/root PREFIX=/usr sh packaging/install.sh "$work/built" "$python"
root=$(cd "$work/root" && pwd)
find "$root" -name __pycache__ -prune -exec rm -rf {} + # postinst compiles
find "$root" -name '*.so' -exec strip --strip-unneeded {} + -exec chmod 0644 {} +

version=$(sed -n "s/^  version: '\(.*\)',/\1/p" meson.build)-1
maintainer="${DEBFULLNAME:-ublkd developers} <${DEBEMAIL:-ublkd@example.org}>"
doc=$root/usr/share/doc/ublkd
mkdir -p "$doc" "$root/DEBIAN" "$work/debian"
{
	printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n'
	printf 'Files: *\nCopyright: %s\nLicense: MIT\n' "$(sed -n 's/^Copyright *(c) *//p' LICENSE)"
	sed -n '/^Permission/,$p' LICENSE | sed 's/^$/./; s/^/ /'
	printf 'Comment: the packages beside ublkd in /usr/lib/ublkd have licences of their own,\n'
	printf ' in their *.dist-info folders.\n'
} >"$doc/copyright"
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
printf 'ublkd (%s) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- %s  %s\n' "$version" \
	"$maintainer" "$(date -R -u -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}")" |
	gzip -9n >"$doc/changelog.Debian.gz"
find "$root/usr/share/man" -type f -exec gzip -9n {} +

# dpkg-shlibdeps looks for debian/control where it is
printf 'Source: ublkd\n\nPackage: ublkd\nArchitecture: any\n' >"$work/debian/control"
libraries=$(cd "$work" && find root -name '*.so' -exec dpkg-shlibdeps -O {} + |
	sed -n 's/^shlibs:Depends=//p')
minor=$("$python" -c 'import sys; print(sys.version_info.minor)')
cat >"$root/DEBIAN/control" <<END
Package: ublkd
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: $maintainer
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f 1)
Depends: python3 (>= 3.$minor~), python3 (<< 3.$((minor + 1))), $libraries, udev, kmod
Recommends: systemd
Section: admin
Priority: optional
Description: Linux block devices that are served by a process
 ublkd serves ublk devices: a file, a block device, several of them, an export
 of an NBD server or a plug-in becomes a disk /dev/ublkbN. Where the kernel can,
 no byte is copied on the way. The disk outlives its daemon, and systemd starts
 it at boot and again whenever it dies.
END
for script in packaging/debian/*; do
	install -m 0755 "$script" "$root/DEBIAN/"
done
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z |
	xargs -0 md5sum >DEBIAN/md5sums)

mkdir -p "$folder"
package=$folder/ublkd_${version}_$(dpkg --print-architecture).deb
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
