"""PIPO-FAN: the method, and the parts that it alone needs."""
