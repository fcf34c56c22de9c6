"""How long a test waits for what must come."""

PATIENCE = 120.0  # s; generous, since a busy machine may take long: only a failure waits for it
