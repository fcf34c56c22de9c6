# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The loop that runs the node's callbacks."""

import threading
from types import SimpleNamespace

import pytest
from patience import PATIENCE

from stream_vlm_ros.node.spinning import spin

pytestmark = pytest.mark.ros


def test_an_action_that_goes_as_it_is_about_to_be_waited_on_is_no_fault():
    """As in a transition, in another thread of the executor; what is called after it is."""
    import rclpy
    from rclpy.action import ActionServer
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.signals import SignalHandlerOptions
    from stream_vlm.action import Ask

    class Going(ActionServer):
        went = False

        def __enter__(self):
            self.went, is_there = True, not self.went
            if is_there:
                self.destroy()
            return super().__enter__()

    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("spins", context=context)
    executor = MultiThreadedExecutor(2, context=context)
    executor.add_node(node)
    action, faults, called = Going(node, Ask, "ask", lambda goal: None), [], threading.Event()
    its = SimpleNamespace(report_fault=lambda where, fault: faults.append(fault))
    thread = threading.Thread(target=spin, args=(executor, its))
    try:
        node.create_timer(0.05, called.set)
        thread.start()
        assert called.wait(PATIENCE)
        assert action.went and faults == []
    finally:
        context.try_shutdown()
        thread.join(PATIENCE)
        executor.shutdown(timeout_sec=5)
        node.destroy_node()
