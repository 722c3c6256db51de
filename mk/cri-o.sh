#!/bin/sh
# Builds CRI-O's crio and pinns once: cri-o.sh VERSION DIRECTORY. It takes two minutes on two idle
# cores if Go has cached nothing.
set -eu
version=$1 kept=$2
[ -x "$kept/crio" ] && [ -x "$kept/pinns" ] && exit
go=$(mk/go.sh)
mkdir -p "$kept"
source=$(mktemp -d)
trap 'chmod -R u+w "$source"; rm -rf "$source"' EXIT
echo "engines: building CRI-O $version"
(
	module=$("$go" mod download -json "github.com/cri-o/cri-o@v$version" \
		| sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
	cp -r "$module/." "$source"
	chmod -R u+w "$source"
	cd "$source"
	CGO_ENABLED=0 "$go" build -mod=mod -trimpath -ldflags '-s -w' \
		-tags 'containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper' \
		-o "$kept/crio.new" ./cmd/crio
	cc -O2 -o "$kept/pinns" pinns/src/*.c
	mv "$kept/crio.new" "$kept/crio"
) > "$kept/log" 2>&1
