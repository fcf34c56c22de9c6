# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A conversation as one page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jinja2

from stream_vlm_ros.console import visible

from .clock import clock_text, span_text
from .conversation import Exchange, data_url, sentence
from .figures import choice_shares, length_text, outcome_text, unnamed_text
from .live_memory import Status
from .time_line import KINDS


def report_page(exchanges: Sequence[Exchange], status: Status) -> str:
    """HTML with questions, answers, evidence and its pictures."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        clock=clock_text,
        span=lambda span: span_text(*span),
        time=lambda seconds: f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}",
        visible=visible,
        sentence=sentence,
        picture=data_url,
        figures=outcome_text,
        unnamed=unnamed_text,
        shares=choice_shares,
    )
    return environment.get_template("report.html.jinja").render(
        exchanges=exchanges,
        status=status,
        length=length_text(status),
        kinds=KINDS,
        now=datetime.now().timestamp(),
    )
