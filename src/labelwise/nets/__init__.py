"""Networks: tensors -> tensors, in 2D and 3D by one `dims` argument."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
