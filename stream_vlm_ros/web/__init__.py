# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console: a page that shows a memory at work, and asks it.

Whose memory it is
    live_memory     `LiveMemory`: what the page needs of one; the node's, or one in this process
    over_node       that of a node that runs
    examples        questions that a model can answer
    in_process      of a source that is read here, without ROS
    apart           the same, in a process of its own
    pictures        its newest picture, encoded once for all who look

What it says of one
    clock           a source's time as people read it
    figures         the state in words and figures
    time_line       all that was seen on one line, and where it is now

How it is served
    serving         until the process is told to end

Who comes in
    gate            the key, other sites, and how many look at a time

What is served, with the extra ``web``
    extra           whether that is installed
    app             the server: the page, pictures, thumbnails
    page            what one viewer sees
    conversation    questions and answers on it
    panels          what opens over it: settings, past answers, saving, loading
    picture_view    the live picture
    time_line_view  the time line
    titles          what settings are called there
    tags            elements of the page, briefly
    newest          the newest picture, waited for once for all who look
    report          a conversation as one page
"""
