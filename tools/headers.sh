#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Write the copyright and license lines into the files that have none and can hold a comment.
# Usage: headers.sh REUSE. What REUSE.toml names has its license there.
set -e
cd "$(dirname "$0")/.."
reuse="$1"

annotate() {
    xargs -0 "$reuse" annotate --copyright "The stream_vlm developers" --year 2026 \
        --license Apache-2.0 --template two_lines --skip-existing "$@"
}

# A function, because this file, too, is rewritten: sh reads what it runs piece by piece.
main() {
    git ls-files -z -- '*.py' '*.sh' '*.toml' '*.xml' '*.yml' '.*.yaml' Makefile CMakeLists.txt \
        ':!REUSE.toml' | annotate
    # Kinds that the tool does not know; their comments begin with "#", too. The .txt are copies of
    # messages.
    git ls-files -z -- '*.msg' '*.srv' '*.action' 'stream_vlm_ros/*/interfaces/*.txt' '*.in' \
        .ci/run | annotate --style python
    exit
}
main
