# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The engine as a service: sessions of many cameras over one model, over the network.

Who is served
    keys         which key may do what: a session belongs to its key

What is served
    options      what the server is told: how many sessions, and for how long
    sessions     the memories, each with its frames, its questions and its files
    ownership    the right to a saved memory, where servers share a folder
    telling      what is told of them, in the words of the protocol

Over the network
    refusals     errors as answers of HTTP
    live         a camera's WebSocket
    chat_request   what a chat completion asks for, and what of it is honoured
    completions    chat completions, as OpenAI's clients ask for them
    outbox       what waits to be sent on one
    app          the application: HTTP, and the WebSocket
    metrics      for Prometheus
    running      a server that is drained before it ends
    extra        whether what it needs is installed

On several GPUs and machines
    cluster      the options of ``stream-vlm serve --ray``
    ray_app      the application as replicas of Ray Serve
    ray_running  it on a cluster
    named        refuses what names no session
    ring         which replica a session belongs to
"""
