"""Two label maps become numbers: overlap and surface metrics of each class, per case, and their summary."""
