"""A robot's visual memory that can be questioned: streaming Qwen2.5-VL for ROS 2."""

__version__ = "0.1.0"
