"""What the whole cluster agrees on: small versioned nodes, changed together or not at all."""
