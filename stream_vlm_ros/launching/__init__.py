# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Arguments of the launch files, checked before anything starts, and what these files share."""
