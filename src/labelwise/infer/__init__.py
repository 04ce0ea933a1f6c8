"""A predictor and a scan -> a label map on the grid of the scan."""
