"""Asking and watching a node that runs: for the demo, live replays and people's own nodes."""
