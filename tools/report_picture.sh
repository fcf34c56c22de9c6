#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Draw docs/report/report.png: the page of a replay of docs/report/questions.csv, as a browser shows
# it. Run inside the environment (tools/run.sh); needs Chromium.
set -e
cd "$(dirname "$0")/../docs/report"
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "stream_vlm: no Chromium here: install it (apt-get install chromium)" >&2
    exit 1
}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
stream-vlm replay world:7 --end 60 --questions questions.csv --history auto --device cpu \
    --engine max_cache_tokens=400 --out "$made/report"
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=3000 \
    --user-data-dir="$made/profile" --window-size=1100,1900 \
    --screenshot="$made/page.png" "file://$made/report/report.html" 2>/dev/null
# A palette: a third of the size, and nobody sees it.
python -c "import sys; from PIL import Image
Image.open(sys.argv[1]).convert('RGB').quantize(192, dither=0).save('report.png', optimize=True)" \
    "$made/page.png"
ls -l report.png
