"""SASSNet: the method, and the parts that it alone needs."""
