"""Child processes, and a ROS graph of their own for them."""
