"""`export` of a trained model: a file or a folder for programs without this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelwise.errors import ConfigError
from labelwise.infer.bundle import METADATA, write_bundle
from labelwise.infer.model import load_model
from labelwise.infer.onnx_file import write_onnx
from labelwise.infer.portable import Difference
from labelwise.infer.program_file import write_program

__all__ = ["ExportedModel", "export_model"]

# By the ending of the name: what it is called, what compared it, and what writes it.
_KINDS = {
    ".onnx": ("ONNX", "ONNX Runtime", write_onnx),
    ".pt2": ("torch.export", "torch.export", write_program),
    "": ("a MONAI bundle", "torch.export", write_bundle),
}


@dataclass(frozen=True)
class ExportedModel:
    """What was written, and how far its answers are from those of the model."""

    file: Path  # or the folder of a bundle
    difference: Difference

    def to_text(self) -> str:
        """One line."""
        files = [self.file, *self.file.rglob("*")]
        megabytes = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
        kind, judge, _ = _KINDS[self.file.suffix]
        return (
            f"{self.file}: {kind}, {megabytes:.1f} MB; by {judge}, scores differ from the model by at most "
            f"{self.difference.scores:.1e}, the class in {100 * self.difference.classes:.4f} % of the voxels of noise"
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"file": str(self.file), **self.difference._asdict()}


def export_model(model: Path | str, output: Path | str, *, overwrite: bool = False) -> ExportedModel:
    """Write a trained model for programs without this package, load it again, and compare it with the model.

    The graph takes windows to scores; how a scan becomes windows, and scores a label map, is described in words and
    as a program that needs NumPy and SciPy alone (see `labelwise.infer.portable`).

    Arguments
        model       model folder, or the folder of a run
        output      the file NAME.onnx or NAME.pt2 (torch.export), or a folder for a MONAI bundle
        overwrite   replace what has this name

    Errors
        CheckpointError     not a model; a part of it has no counterpart in a graph; what was written answers otherwise
        ConfigError         another ending; there is such a file or folder; an ensemble
        ResourceError       the extra `onnx` is not installed; it cannot be written
    """
    target = Path(output)
    if target.suffix not in _KINDS:
        raise ConfigError(
            "a model is not written in this format",
            found=target,
            expected="a file NAME.onnx or NAME.pt2, or a folder without an ending for a MONAI bundle",
        )
    if target.is_dir() and not (target.suffix == "" and (target / METADATA).exists()):
        raise ConfigError("this folder is no MONAI bundle", file=target, do="choose another name")
    if target.exists() and not overwrite:
        raise ConfigError(
            f"there is such a {'folder' if target.is_dir() else 'file'} already",
            file=target,
            do="choose another name, or --overwrite",
        )
    write = _KINDS[target.suffix][2]
    return ExportedModel(target, write(load_model(model, "cpu"), target))
