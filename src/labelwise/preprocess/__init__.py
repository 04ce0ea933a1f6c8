"""Volume -> Volume before the network, and back after it."""
