"""Losses: pure functions, tensors -> one number to minimise. Statistics are kept in float32 or better."""
