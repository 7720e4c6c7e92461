#!/bin/sh
# SPDX-License-Identifier: MIT
# The source archive, the wheel built from it, and an editable install: each gives a working
# ublkd. Needs a commit, because the archive is made of what git has.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bin=$PWD/.venv/bin
pip="$bin/python -m pip --disable-pip-version-check -qq --no-input"
export PATH="$bin:$PATH" PIP_NO_WARN_SCRIPT_LOCATION=1

works() ( # the command of an environment that holds nothing but the package
	cd / # or the sources would stand in for it
	"$1/bin/ublkd" --version
	"$1/bin/ublkd" add --target loop --help >/dev/null
	"$1/bin/python" -c 'import ublkd.targets.loop, ublkd.targets.null, ublkd.device'
)

# the checkout may be somebody else's, as in a container
printf '[safe]\n\tdirectory = *\n' >"$work/gitconfig"
export GIT_CONFIG_GLOBAL="$work/gitconfig"
git clone -q . "$work/tree"
cd "$work/tree"
"$bin/python" -c 'import mesonpy; print("sdist:", mesonpy.build_sdist("../dist"))' 2>"$work/log" \
	>"$work/out" || { cat "$work/log" "$work/out"; exit 1; }
tail -n 1 "$work/out"
$pip wheel --no-build-isolation --no-deps -w "$work/dist" "$work"/dist/*.tar.gz
ls "$work/dist"
case $(ls "$work/dist") in *-abi3-*) ;; *) echo "the wheel is not abi3"; exit 1 ;; esac

"$bin/python" -m venv --without-pip "$work/wheel"
$pip --python "$work/wheel/bin/python" install "$work"/dist/*.whl
works "$work/wheel"

"$bin/python" -m venv --without-pip "$work/editable"
$pip --python "$work/editable/bin/python" install meson-python meson ninja 'cffi >= 2.1'
PATH="$work/editable/bin:$PATH" $pip --python "$work/editable/bin/python" install \
	--no-build-isolation -e .
works "$work/editable"
echo "package: ok"
