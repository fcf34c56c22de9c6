# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory in a file: saved while the stream goes on, loaded as if it had never ended.

`InferenceEngine.save_memory` and `load_memory` are its face.

    memory_copy     a stream's memory on the host, apart from the engine; back into an engine
    bookkeeping     all of it but keys and values, and whether what was read can be so
    memory_file     the file: safetensors, whole at any moment, read with suspicion
    plain           bookkeeping as JSON and bytes, by the types of its fields
    binding         what a memory is bound to: model, prompt layout, settings
"""
