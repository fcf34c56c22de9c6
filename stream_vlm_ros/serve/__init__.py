# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The engine as a service: sessions of many cameras over one model, over the network.

Who is served
    keys         which key may do what: a session belongs to its key

What is served
    options      what the server is told: how many sessions, and for how long
    sessions     the table of sessions: which there are, how many there may be, when they end
    session      one of them: the memory of a camera, and its questions
    life_cycle   its phases, from loading to its end
    frames       the way of its frames, as chunks, to the queue of its engine
    events       what became of them, told to who is connected
    session_file   where it is saved, whose that is, and how far frames were accepted
    ending       how it ends: its chunks, its file, its answers, its engine
    session_errors   why there is no session, or not now
    ownership    the right to a saved memory, where servers share a folder
    notes        by which thread it is noted how far frames were accepted
    telling      what is told of them, in the words of the protocol

Over the network
    refusals     errors as answers of HTTP
    live         a camera's WebSocket
    calls        calls that other threads make
    pixel_budget   how many pixels of large pictures are decoded at a time
    chat_request   what a chat completion asks for, and what of it is honoured
    completions    chat completions, as OpenAI's clients ask for them
    outbox       what waits to be sent on one
    app          the application: HTTP, and the WebSocket
    metrics      for Prometheus
    connections  how many there are, and what each may take, whoever it is
    running      a server that is drained before it ends
    extra        whether what it needs is installed

On several GPUs and machines
    cluster      the options of ``stream-vlm serve --ray``
    ray_app      the application as replicas of Ray Serve
    ray_running  it on a cluster
    named        refuses what names no session
    ring         which replica a session belongs to
"""
