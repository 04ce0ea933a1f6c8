"""`export` of a trained model: one file for programs without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.errors import ConfigError
from labelwise.infer.model import load_model
from labelwise.infer.onnx_file import Difference, write_onnx

__all__ = ["ExportedModel", "export_model"]


@dataclass(frozen=True)
class ExportedModel:
    """The written file, and how far its answers are from those of the model."""

    file: Path
    difference: Difference

    def to_text(self) -> str:
        """One line."""
        megabytes = self.file.stat().st_size / 1e6
        return (
            f"{self.file}: {megabytes:.1f} MB; by ONNX Runtime, scores differ from the model by at most "
            f"{self.difference.scores:.1e}, the class in {100 * self.difference.classes:.4f} % of the voxels of noise"
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"file": str(self.file), **self.difference._asdict()}


def export_model(model: Path | str, output: Path | str, *, overwrite: bool = False) -> ExportedModel:
    """Write a trained model as one ONNX file, and compare it with the model by ONNX Runtime.

    The graph takes windows to scores; how a scan becomes windows, and scores a label map, stands in the metadata of
    the file (see `labelwise.infer.onnx_file`).

    Arguments
        model       model folder, or the folder of a run
        output      the file, NAME.onnx
        overwrite   replace a file of this name

    Errors
        CheckpointError     not a model; a part of it has no counterpart in ONNX; the file answers otherwise
        ConfigError         another suffix; the file exists
        ResourceError       the extra `onnx` is not installed
    """
    file = Path(output)
    if file.suffix != ".onnx":
        raise ConfigError("a model is written as ONNX", found=file, expected="a file NAME.onnx")
    if file.exists() and not overwrite:
        raise ConfigError("there is such a file already", file=file, do="choose another name, or --overwrite")
    return ExportedModel(file, write_onnx(load_model(model, "cpu"), file))
