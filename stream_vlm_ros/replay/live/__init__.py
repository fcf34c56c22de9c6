"""The same replay through a running node, over DDS."""
