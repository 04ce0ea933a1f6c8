"""Tables of numbers become one page.

compare     scores of several runs -> means, intervals, paired differences, ranks; comparison tells them as text, CSV,
            JSON, Markdown or LaTeX
figures     log records and case counts -> pictures; plots: values, differences and sizes of a comparison
overlays    a scan and its label maps -> three planes; viewer: the same for the viewer of the page
page        all of it -> one HTML file that needs nothing else

A training asks for pictures only if it is told to; matplotlib is imported when the first one is drawn.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
