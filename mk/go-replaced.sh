#!/bin/sh
# Builds a command of a Go module that has replace lines, which "go install" refuses: from a module
# of our own that repeats them. A replacement by a folder of the module's own is left to the module
# of that name, at the version given last.
#   go-replaced.sh GO MODULE VERSION PACKAGE OUTPUT [NESTED_VERSION]
set -eu
go=$1 module=$2 version=$3 package=$4 output=$5 nested=${6:-latest}
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
"$go" mod init firstlight/plugins 2>/dev/null
original=$("$go" mod download -json "$module@$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
resolved=$(basename "$original" .mod)
printf '\nrequire %s %s\n' "$module" "$resolved" >>go.mod
grep '^go ' "$original" | sed 's/^go //' | xargs "$go" mod edit -go
sed -n '/^replace (/,/^)/p; /^replace [^(]/p' "$original" |
	sed "s#^\([[:space:]]*\(replace \)\{0,1\}\)\([^ ]*\) => \./.*#\1\3 => \3 $nested#" >>go.mod
CGO_ENABLED=0 GOFLAGS=-mod=mod "$go" build -ldflags '-s -w' -o "$output" "$package"
