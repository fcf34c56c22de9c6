# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""By launch_testing: replay.launch.py asks the node while a bag plays; a shutdown ends it all.

The folder that the environment variable REPLAY names holds the bag and the questions.
"""

import os
import unittest
from pathlib import Path

import launch_testing
import launch_testing.asserts
from launched import description_of

FOLDER = Path(os.environ["REPLAY"])


def generate_test_description():
    return description_of(
        "replay.launch.py",
        bag=str(FOLDER / "bag"),
        questions=str(FOLDER / "questions.yaml"),
        out=str(FOLDER / "report"),
        image="/camera",
        device="cpu",
    )


class TestWhileItRuns(unittest.TestCase):
    def test_the_replay_asks_the_node_while_the_bag_plays(self, proc_output):
        proc_output.assertWaitFor("the node is active", timeout=120)
        proc_output.assertWaitFor("asking /stream_vlm", timeout=120)


@launch_testing.post_shutdown_test()
class TestAtTheEnd(unittest.TestCase):
    def test_the_node_ended_well(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info, process="stream_vlm_node")
