#!/bin/sh
# Builds a command of a Go module that has replace lines, which "go install" refuses: from a module
# of our own that repeats them. A replacement by a folder of the module's own is left to the module
# of that name, at the version given last. BUILD is "build", or "test -c" for a program of tests;
# TAGS, LDFLAGS and JOBS are the build's. WITHOUT matches imports that the command is built without,
# REPLACE is one more replacement (OLD=NEW@VERSION): for what the module proxy does not have.
#   go-replaced.sh GO MODULE VERSION PACKAGE OUTPUT [NESTED_VERSION]
set -eu
go=$1 module=$2 version=$3 package=$4 output=$5 nested=${6:-latest}
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
"$go" mod init firstlight/built 2>/dev/null
described=$("$go" mod download -json "$module@$version")
original=$(echo "$described" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
resolved=$(basename "$original" .mod)
grep '^go ' "$original" | sed 's/^go //' | xargs "$go" mod edit -go
{
	sed -n '/^godebug (/,/^)/p; /^godebug [^(]/p' "$original"
	printf '\nrequire %s %s\n' "$module" "$resolved"
	sed -n '/^replace (/,/^)/p; /^replace [^(]/p' "$original" |
		sed "s#^\([[:space:]]*\(replace \)\{0,1\}\)\([^ ]*\) => \./.*#\1\3 => \3 $nested#"
} >>go.mod
if [ -n "${REPLACE:-}" ]; then "$go" mod edit -replace "$REPLACE"; fi
if [ -n "${WITHOUT:-}" ]; then
	mkdir command
	cp "$(echo "$described" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')${package#"$module"}"/*.go command
	rm -f command/*_test.go
	chmod u+w command/*
	sed -i "\\#$WITHOUT#d" command/*.go
	package=./command
fi
# shellcheck disable=SC2086  # "test -c" is two words
CGO_ENABLED=0 GOFLAGS=-mod=mod "$go" ${BUILD:-build} ${JOBS:+-p "$JOBS"} -trimpath \
	-tags "${TAGS:-}" -ldflags "-s -w ${LDFLAGS:-}" -o "$output" "$package"
