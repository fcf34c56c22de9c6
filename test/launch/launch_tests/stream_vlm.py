# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""By launch_testing: stream_vlm.launch.py starts the node, and a shutdown ends it."""

import unittest

import launch_testing
import launch_testing.asserts
from launched import description_of


def generate_test_description():
    return description_of(
        "stream_vlm.launch.py", namespace="robot", image="/camera/image_raw", device="cpu"
    )


class TestWhileItRuns(unittest.TestCase):
    def test_the_node_becomes_active_in_its_namespace_on_its_topic(self, proc_output):
        proc_output.assertWaitFor("[robot.stream_vlm]: waiting for images on /camera", timeout=120)
        proc_output.assertWaitFor("the node is active", timeout=120)


@launch_testing.post_shutdown_test()
class TestAtTheEnd(unittest.TestCase):
    def test_the_node_ended_well(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
