# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How the small model was trained: rows of tokens, the network's forward, the loop."""
