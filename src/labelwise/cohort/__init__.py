"""Which cases there are: the manifest with its class table, joined, split, and made scarce."""
