"""Visual memory for robots: streaming Qwen2.5-VL for ROS 2."""

__version__ = "0.1.0"
