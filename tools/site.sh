#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Build the documentation site into build/site, from the pages and the docstrings; no network.
# Usage: site.sh MKDOCS
set -e
cd "$(dirname "$0")/.."
# The pages and what they link to, where they lie in the repository.
rm -rf build/docs
mkdir -p build/docs
for name in *.md *.rst LICENSE package.xml docs bench stream_vlm_ros config examples; do
    ln -s "$PWD/$name" "build/docs/$name"
done
# Not --quiet: with it, warnings would not count, and nothing would be strict.
NO_MKDOCS_2_WARNING=1 "$1" build
# Whoever reads it loads nothing from elsewhere.
if grep -rlE '<(script|img|iframe|source)[^>]* src="(https?:)?//|<link[^>]*stylesheet[^>]*href="(https?:)?//' \
    --include '*.html' build/site; then
    echo "The pages named above load something from another machine." >&2
    exit 1
fi
echo "build/site/index.html"
