#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Remove what make has made in a folder: .venv, build, install and log. What bears one of these
# names and was made by somebody else ends it before anything is removed. Usage: remove_made.sh FOLDER
set -e
cd "$1"

made() {
    # A link is removed as such, not what it leads to.
    [ -L "$1" ] && return 0
    for mark in "$1"/.made_by_make "$1"/.created-* "$1"/COLCON_IGNORE "$1"/.sources; do
        [ -f "$mark" ] && return 0
    done
    [ -d "$1" ] && [ -z "$(ls -A "$1")" ]
}

for name in .venv build install log; do
    if [ -e "$name" ] && ! made "$name"; then
        echo "$PWD/$name was not made by make, and is in its way: move it away." >&2
        exit 1
    fi
done
rm -rf .venv build install log
