"""labelwise trains medical image segmentation when only some cases, or only some structures, are annotated.

The words of the package (`LabelSpace`, `Case`, `Volume`, `Batch`), a trained `Model` and the base of a method are here;
the work is done by the functions of `labelwise.run`, one for each verb of the command line:

    from labelwise import load_config, load_model, run
    run.train(load_config("recipe.toml", data="my_data"), "runs/first")
    labels = load_model("runs/first").predict("scan.nii.gz")

Methods and networks of one's own are made from `labelwise.losses`, `labelwise.components` and `labelwise.nets`, and
held to the contract by `labelwise.testing`; files are read and written by `labelwise.formats`, arrays scored by
`labelwise.metrics`.

Everything is imported when it is first used: importing torch costs a second, and ``labelwise --help`` needs none of it.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
