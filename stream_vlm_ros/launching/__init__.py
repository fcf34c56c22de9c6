"""Arguments of the launch files, checked before anything starts, and what these files share."""
