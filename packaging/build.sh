#!/bin/sh
# SPDX-License-Identifier: MIT
# What `make install` copies, made in FOLDER: ublkd with the Python packages it needs (lib/), manual
# pages (man/) and completions (completion/). Nothing in it depends on where it will be.
#   sh packaging/build.sh FOLDER PYTHON
set -eu
folder=$1 python=$2

rm -rf "$folder"
mkdir -p "$folder/man" "$folder/completion"
folder=$(cd "$folder" && pwd)
"$python" -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip --disable-pip-version-check -qq --no-input"
$pip wheel --no-deps -w "$folder/wheel" .
$pip install --no-compile --target "$folder/lib" "$folder"/wheel/*.whl
# the command is another one (install.sh), and where this was built is nobody's business
rm -rf "$folder/lib/bin" "$folder"/lib/*.dist-info/direct_url.json

if command -v pandoc >/dev/null; then
	pandoc=pandoc
else
	$pip install 'pypandoc_binary ~= 1.15'
	pandoc=$("$folder/venv/bin/python" -c 'import pypandoc; print(pypandoc.get_pandoc_path())')
fi
version=$(sed -n "s/^  version: '\(.*\)',/\1/p" meson.build)
while read -r page source about; do
	"$pandoc" --standalone --from markdown-smart --to man \
		--lua-filter packaging/man.lua --variable "title=${page%.*}" --variable "about=$about" \
		--variable "section=${page##*.}" --variable "footer=ublkd $version" \
		--variable "part=${source#*.md}" "docs/${source%#*}" -o "$folder/man/$page"
done <packaging/man.list

for shell in bash zsh fish; do
	PYTHONPATH="$folder/lib" _UBLKD_COMPLETE=${shell}_source "$python" -P -m ublkd \
		>"$folder/completion/$shell" || [ -s "$folder/completion/$shell" ]
done
rm -rf "$folder/venv" "$folder/wheel"
find "$folder/lib" -name __pycache__ -prune -exec rm -rf {} +
