"""A model as a MONAI bundle: a folder that programs built on MONAI run without this package.

configs/metadata.json       what it segments, and the shapes and classes of the network
configs/inference.json      reading, the network, sliding windows and writing by MONAI; the rest by scripts/steps.py
configs/labelwise.json      the description (`labelwise.infer.portable`)
models/model.pt2            the network as an exported program
models/model.pt             its weights alone, for `monai.bundle.load`
scripts/steps.py            what surrounds the network (`labelwise.infer.steps`)
docs/README.md, LICENSE     the card of the model; the terms
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from labelwise.atomic import atomic_path, write_json, write_text
from labelwise.infer.card import card_text, licence_of_weights
from labelwise.infer.model import Model
from labelwise.infer.portable import (
    Difference,
    answer_of_program,
    compare,
    describe,
    make_program,
    steps_source,
    window_size,
)
from labelwise.infer.sliding_window import InferenceConfig
from labelwise.infer.windows import Size

__all__ = ["METADATA", "inferer_of", "write_bundle"]

METADATA = "configs/metadata.json"
LEAST_IGNITE = "0.5.0"  # of the evaluator of MONAI; this package does not need it

_OF_STEPS = "scripts/steps.py is a part of labelwise, under the Apache License 2.0: https://www.apache.org/licenses/LICENSE-2.0"


def write_bundle(model: Model, folder: Path) -> Difference:
    """Write a model as a bundle, whole or not at all, load its network again, and compare.

    Errors
        ConfigError         an ensemble
        CheckpointError     a part of the network cannot be drawn as a graph; the written program answers otherwise
        ResourceError       the folder cannot be written
    """
    program = make_program(model)
    told = describe(model)
    with atomic_path(folder) as temporary:
        for part in ("configs", "models", "scripts", "docs"):
            (temporary / part).mkdir(parents=True)
        write_json(temporary / METADATA, _metadata(model, told))
        write_json(temporary / "configs" / "inference.json", _inference(model))
        write_json(temporary / "configs" / "labelwise.json", told)
        torch.save(dict(program.state_dict), temporary / "models" / "model.pt")  # tensors only
        torch.export.save(program, temporary / "models" / "model.pt2")
        write_text(temporary / "scripts" / "__init__.py", "")
        write_text(temporary / "scripts" / "steps.py", steps_source())
        write_text(temporary / "docs" / "README.md", card_text(vars(model.info)))
        write_text(temporary / "LICENSE", f"{licence_of_weights(model.info.training)}\n{_OF_STEPS}\n")
        return compare(model, answer_of_program(temporary / "models" / "model.pt2"))


def _metadata(model: Model, told: dict[str, Any]) -> dict[str, Any]:
    names = model.label_space.names
    shape = list(window_size(model))
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported from the model {model.id}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            **{name: version(name) for name in ("scipy", "nibabel")},
            "pytorch-ignite": LEAST_IGNITE,
        },
        "name": model.info.name,
        "task": "segmentation",
        "description": f"Segments {', '.join(model.label_space.structures)}. Made by labelwise, for research; not a "
        "medical device.",
        "intended_use": "research only; a person looks at every result",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": ", ".join(told["intensities"]),
                    "num_channels": model.channels,
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(index): f"image {index + 1}" for index in range(model.channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "segmentation",
                    "num_channels": len(names),
                    "spatial_shape": shape,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {str(index): name for index, name in enumerate(names)},
                }
            },
        },
    }


def _inference(model: Model) -> dict[str, Any]:
    """What MONAI does with a folder of scans; the steps of labelwise stand between its reading and its writing."""
    return {
        "imports": ["$import json", "$import pathlib", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "scans",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "told": "$json.loads(pathlib.Path(@bundle_root, 'configs', 'labelwise.json').read_text('utf-8'))",
        "scans": "$sorted(map(str, pathlib.Path(@dataset_dir).glob('*.nii.gz')))",
        "network_def": "$torch.export.unflatten(torch.export.load(str(pathlib.Path(@bundle_root, 'models', "
        "'model.pt2'))))",
        "network": "$@network_def.to(@device)",
        "preprocessing": _composed(
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "scripts.steps.Prepared", "told": "@told"},
        ),
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan} for scan in @scans]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": inferer_of(model.config, model.config.window_for(model.info.patch_size)),
        "postprocessing": _composed(
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "scripts.steps.Restored", "told": "@told"},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": True,
                "to_tensor": True,
            },
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_postfix": "",
                "output_dtype": "$'uint8'",
                "separate_folder": False,
                "resample": False,
            },
        ),
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "initialize": [],
        "run": ["$@evaluator.run()"],
    }


def inferer_of(config: InferenceConfig, window: Size) -> dict[str, Any]:
    """The inferer of MONAI whose windows lie and weigh as ours."""
    kind, size = "SlidingWindowInferer", list(window)
    if window[2] == 1:
        kind, size = "SliceInferer", size[:2]
    strides = config.stride or (None, None, None)
    return {
        "_target_": f"monai.inferers.{kind}",
        "roi_size": size,
        "sw_batch_size": config.batch_size,
        "overlap": [_overlap(*axis, config.overlap) for axis in zip(window, strides, strict=True)],
        "mode": config.blending,
        "sigma_scale": 0.125,  # as the Gaussian of labelwise.infer.windows
    }


def _composed(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def _overlap(length: int, stride: int | None, overlap: float) -> float:
    """The overlap of which MONAI makes the stride, as `int(length * (1 - overlap))`."""
    if stride is None:
        return overlap
    return max(0.0, 1 - (stride + 0.5) / length)
