"""The old place of `labelwise.loading.store`; it goes with version 0.2."""

import warnings

from labelwise.loading.store import Store as Store

warnings.warn(
    "labelwise.data.cache is now labelwise.loading.store; the old name goes with version 0.2",
    DeprecationWarning,
    stacklevel=2,
)
