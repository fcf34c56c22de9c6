"""How the small model was trained: rows of tokens, the network's forward, the loop."""
