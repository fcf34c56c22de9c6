# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console: a page that shows a memory at work, and asks it.

Whose memory it is
    live_memory     `LiveMemory`: what the page needs of one; the node's, or one in this process
    in_process      of a source that is read here, without ROS
    apart           the same, in a process of its own
    pictures        its newest picture, encoded once for all who look

Who comes in
    gate            the key, other sites, and how many look at a time

What is served, with the extra ``web``
    app             the server: the page, pictures, thumbnails
    page            what one viewer sees
    picture_view    the live picture
    newest          the newest picture, waited for once for all who look
    clock           a source's time as people read it
"""
