#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Install the Chromium that the console's tests drive, where there is none and it may be had.
for name in chromium chromium-browser google-chrome; do
    ! command -v "$name" >/dev/null 2>&1 || exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "== Chromium, for the tests of the console"
    apt-get update -q >/dev/null 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium \
        >/dev/null 2>&1
    ! command -v chromium >/dev/null 2>&1 || exit 0
fi
echo "stream_vlm: no Chromium here, which the tests of the console drive. This line installs it" >&2
echo "(Debian; elsewhere chromium-browser or google-chrome will do):" >&2
echo >&2
echo "    sudo apt-get install -y chromium" >&2
exit 1
