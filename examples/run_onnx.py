"""Segment a scan with an exported model, without this package and without torch.

    labelwise export runs/first -o first.onnx
    python run_onnx.py first.onnx scan.nii.gz labels.nii.gz

Needs numpy, scipy, nibabel and onnx, and ONNX Runtime or, as a fourth argument says, OpenVINO. The steps around the
network travel in the file; here they are written beside it as a module, and imported.
"""

import importlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx


def main(model: str, scan: str, labels: str, runtime: str = "onnxruntime") -> None:
    travelling = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    told = json.loads(travelling["labelwise"])
    Path(model).with_name("labelwise_steps.py").write_text(travelling["labelwise_steps"], encoding="utf-8")
    sys.path.insert(0, str(Path(model).parent))
    steps = importlib.import_module("labelwise_steps")

    given = nib.load(scan)
    image = nib.as_closest_canonical(given)  # RAS+
    prepared, undo = steps.prepare(image.get_fdata(dtype=np.float32)[None], image.affine, told)
    found = steps.restore(steps.label(prepared, told, scores_of(model, runtime)), undo, told)

    back = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.io_orientation(given.affine))
    stored = nib.apply_orientation(found, back).astype(np.uint8)
    nib.save(nib.Nifti1Image(stored, given.affine), labels)
    print(f"{labels}: {', '.join(told['output']['classes'][index] for index in np.unique(found))}")


def scores_of(model: str, runtime: str):
    """Windows (B, M, ...) -> scores (B, C, ...)."""
    if runtime == "openvino":
        core = importlib.import_module("openvino").Core()
        # Some processors would else compute in bf16: quicker, and with other borders.
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda windows: compiled(windows)[0]
    session = importlib.import_module("onnxruntime").InferenceSession(model)
    return lambda windows: session.run(["scores"], {"windows": windows})[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
