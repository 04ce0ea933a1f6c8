"""Where the rooms meet: one public function for each verb of the command line, imported when first used.

The function of a verb lies in the file of the same name, and `import_data` is the verb ``import``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
