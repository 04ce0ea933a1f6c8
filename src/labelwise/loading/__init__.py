"""From a manifest to batches: the store of prepared scans, the choice of patches, and their random changes."""
