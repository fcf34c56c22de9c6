# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""By launch_testing: demo.launch.py asks questions, and a shutdown ends all that it started."""

import unittest

import launch_testing
import launch_testing.asserts
from launched import description_of


def generate_test_description():
    return description_of("demo.launch.py", seconds="60", namespace="robot", device="cpu")


class TestWhileItRuns(unittest.TestCase):
    def test_questions_are_answered(self, proc_output):
        proc_output.assertWaitFor("the node is active", timeout=120)
        proc_output.assertWaitFor("first token", timeout=120, stream="stdout")


@launch_testing.post_shutdown_test()
class TestAtTheEnd(unittest.TestCase):
    def test_node_and_camera_ended_well(self, proc_info):
        for name in ("stream_vlm_node", "source_node"):
            launch_testing.asserts.assertExitCodes(proc_info, process=name)
