"""Old places of modules: scripts that were written before the room was split still run, with a warning."""
