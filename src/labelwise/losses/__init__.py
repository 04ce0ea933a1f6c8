"""Losses: pure functions, tensors -> one number to minimise. Statistics are kept in float32 or better."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
