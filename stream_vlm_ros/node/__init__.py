"""The ROS 2 side: the node and what it is made of. The only place that imports rclpy."""
