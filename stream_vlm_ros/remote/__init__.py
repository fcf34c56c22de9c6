# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory on another machine: what travels between a robot and `stream-vlm serve`.

Needs neither torch nor a web framework: it is what a robot without a GPU installs.

    protocol        the messages, for both sides

On the robot:

    worker          a session at a server, with what the node uses of an engine
    link            the connection, kept up in a thread of its own
    exchange        what was sent, and what has come of it: plain bookkeeping
    pictures        frames on their way out
    values          between what travels and what the node works with
"""
