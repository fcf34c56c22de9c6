#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Print a folder with the files of a commit: tools/tree_at.sh 90b1803
# It is extracted once, into build/trees/, and never changed.
set -e
root=$(cd "$(dirname "$0")/.." && pwd)
commit=$(git -C "$root" rev-parse --verify --quiet "$1^{commit}") || {
    echo "stream_vlm: there is no commit '$1' in $root" >&2
    exit 2
}
folder="$root/build/trees/$commit"
if [ ! -d "$folder" ]; then
    mkdir -p "$root/build/trees"
    new=$(mktemp -d "$folder.XXXXXX")
    git -C "$root" archive --output "$new/archive.tar" "$commit"
    tar -x -f "$new/archive.tar" -C "$new"
    rm "$new/archive.tar"
    mv "$new" "$folder" # all or nothing, also where two begin at once
fi
echo "$folder"
