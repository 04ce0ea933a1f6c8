"""A trained model in memory, and the folder that holds all it needs.

    model.json              label space, preparation, network or method, patch size, versions, training facts
    weights.safetensors     the predictor's tensors
    card.md                 the same for people, with scores and limits (`labelwise.infer.card`)

No pickle, no absolute path, no patient data. A predictor that is a plain network with a softmax loads without
the code of the method that trained it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic import dataclasses as pydantic_dataclasses
from torch import nn

from labelwise.atomic import atomic_path, write_json, write_text
from labelwise.console import ShowProgress, silent
from labelwise.devices import choose_device, memory_explained, use_fast_layout
from labelwise.documents import read_json
from labelwise.errors import CheckpointError, ConfigError, ScanWarning, did_you_mean
from labelwise.formats import Layout, hash_file
from labelwise.formats.tensors import load_shapes, load_tensors, load_weights, save_tensors
from labelwise.infer.calibration import Calibration, read_calibration
from labelwise.infer.card import CARD, card_text, with_licence
from labelwise.infer.doubt import Doubt
from labelwise.infer.ensemble import (
    Average,
    Member,
    common_patch,
    common_plan,
    common_postprocess,
    common_strides,
    joined_training,
    require_equal,
)
from labelwise.infer.habits import Examined, Features, flags_of
from labelwise.infer.image import Given, Image, as_image
from labelwise.infer.postprocess import postprocess
from labelwise.infer.record import deciding
from labelwise.infer.sliding_window import (
    InferenceConfig,
    check_mirroring,
    explained_out_of_memory,
    predict_labels,
    predict_scores,
)
from labelwise.infer.thresholds import in_order
from labelwise.methods import find_method
from labelwise.methods.base import IndependentMaps, Method, NetFactory, Softmax
from labelwise.preprocess.pipeline import Plan, Prepared, apply, undo, undo_scores
from labelwise.settings import OLDER_NAMES, build_settings
from labelwise.types import BACKGROUND, Array, LabelSpace, Volume

logger = logging.getLogger("labelwise")

FORMAT = 1
WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"
# A method may keep only a part of the network that its description builds, but no smaller one.
MOST_UNSAVED = 2


@pydantic_dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelInfo:
    """The contents of model.json."""

    name: str
    classes: tuple[str, ...]  # names in order, background first
    intensities: tuple[str, ...]  # the intensity rules that the plan knows: ct, mr, normalised
    plan: dict[str, Any]  # preprocess.Plan as JSON
    net: dict[str, Any]  # NetFactory.description()
    method: str
    method_settings: dict[str, Any]
    # softmax: weights of the network; method: state of the method's predictor
    predictor: Literal["softmax", "method"]
    patch_size: tuple[int, int, int]  # voxels of the prepared scan; the last is 1 for a 2D model
    inference: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)  # steps, seed, cases, scores, versions, date
    # structure -> score from which it counts, where each structure has a map of its own; without an entry 0.5
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] = field(default_factory=dict)
    may_lack: tuple[int, ...] = ()  # channels without which it has seen scans, counted from 0
    format: int = FORMAT

    def __post_init__(self) -> None:
        for old in self.training.keys() & OLDER_NAMES.keys():
            self.training[OLDER_NAMES[old]] = self.training.pop(old)


Judge: TypeAlias = Callable[[Image, str, Layout], Sequence[str]]
"""What is wrong with a scan of such intensities, as sentences; a DataError if it must not be segmented."""


@dataclass(frozen=True)
class Model:
    """A trained model, or several that answer as one by the mean of their scores.

    Loaded once, it is asked for any number of scans. Several threads may ask the same model; it answers one after the
    other. `dataclasses.replace` with another `config` gives a model of other settings that shares the weights.

    Example
        >>> from labelwise import load_model
        >>> model = load_model("runs/first")                            # doctest: +SKIP
        >>> model.predict("scan.nii.gz")                                # doctest: +SKIP
        Volume(shape=(512, 512, 93), spacing=0.78 x 0.78 x 5 mm, dtype=uint8)
        >>> model.predict(voxels, spacing_mm=(0.78, 0.78, 5))           # doctest: +SKIP
        Volume(shape=(512, 512, 93), spacing=0.78 x 0.78 x 5 mm, dtype=uint8)
    """

    info: ModelInfo
    label_space: LabelSpace
    plan: Plan
    config: InferenceConfig
    predictor: nn.Module  # (B, M, *S) -> scores (B, C, *S), on `device`
    device: torch.device
    id: str  # of all that decides its answers: results of one model are never taken for another's
    calibration: Calibration | None = None  # how its scores become chances; None: nobody measured it
    members: tuple[Member, ...] = ()  # of an ensemble
    judge: Judge | None = field(default=None, repr=False, compare=False)  # of scans that `predict` is given
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        # What it was trained to do was decided then.
        if not set(self.config.mirror_axes) <= set(self.info.inference.get("mirror_axes", ())):
            check_mirroring(self.label_space, self.config)

    def __repr__(self) -> str:
        classes = ", ".join(self.label_space.structures)
        return f"Model('{self.info.name}', {self.info.method}, {classes}, on {self.device})"

    @property
    def temperature(self) -> float:
        """What turns its scores into chances: see `labelwise.infer.doubt.as_chances`."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def channels(self) -> int:
        """Number of images (modalities) of one scan."""
        return int(self.info.net["in_channels"])

    def predict(
        self,
        scan: Given,
        *,
        affine: Array | None = None,
        spacing_mm: tuple[float, float, float] | None = None,
        intensity: str | None = None,
        layout: Layout | None = None,
        progress: ShowProgress = silent,
    ) -> Volume:
        """Label every voxel of a scan: what ``labelwise predict`` writes, in memory.

        Arguments
            scan        a file or a folder with a DICOM series, or one for each channel (None: it is missing, if
                        `info.may_lack` allows it); a Volume; or an array (X, Y, Z) or (M, X, Y, Z) with `affine` or
                        `spacing_mm`. Intensities as in the files of the training: HU for CT
            affine      (4, 4) of an array: voxel index -> mm in RAS+, as nibabel has it
            spacing_mm  of an array whose axes run to the right, the front and the top of the patient
            intensity   what its intensities are (`info.intensities`); needed only if the model knows several
            layout      how files of formats without a header are read
            progress    told after each batch of windows: ``progress("windows", done, total, "")``

        Returns
            (X, Y, Z) uint8 or uint16 class indices. They lie on the grid of the scan: of a Volume or an array in
            its own order of axes; of files in RAS+ order, as `read_image` gives them, and `write_labels` with
            ``like=scan`` stores them in the order of the file.

        Errors
            ConfigError     an array without a place, unknown intensities, a stride that leaves gaps
            DataError       a file that cannot be read, another number of channels, voxels that are not numbers; an
                            empty scan, or a DICOM series of another modality
            CheckpointError, ResourceError      scores that are not finite; not enough memory

        A ScanWarning says what ``labelwise predict`` would: a scan not in HU, or unlike those of the training.
        """
        image = as_image(scan, affine=affine, spacing_mm=spacing_mm, layout=layout)
        prepared = self._judged(image, intensity, layout)
        return image.back(self._cleaned(self._restored(prepared, progress)))

    def predict_scores(
        self,
        scan: Given,
        *,
        affine: Array | None = None,
        spacing_mm: tuple[float, float, float] | None = None,
        intensity: str | None = None,
        layout: Layout | None = None,
    ) -> Volume:
        """The scores behind the labels of `predict`, with the same arguments, errors and warnings.

        Returns
            (C, X, Y, Z) float32 in [0, 1], one map for each class, on the grid of the scan. Their strongest class is
            the label of `predict` where the scan was not resampled and nothing was postprocessed; elsewhere borders
            may differ by a voxel. Outside of what was cut out before the network, the background scores 1. They take
            C times the memory of a float32 scan.
        """
        image = as_image(scan, affine=affine, spacing_mm=spacing_mm, layout=layout)
        prepared = self._judged(image, intensity, layout)
        return image.back(undo_scores(self.scores_of(prepared).cpu().numpy(), prepared.undo))

    def _judged(self, image: Image, intensity: str | None, layout: Layout | None) -> Prepared:
        """Prepare a scan, and say where `predict` was called what the judge of scans says."""
        image.check_channels(self.channels, self.info.may_lack)
        name = f"{image.files[0].name}: " if image.files else ""
        judge = self.judge or (lambda *_: ())
        for sentence in judge(image, self.intensity(intensity), layout or Layout()):
            warnings.warn(name + sentence, ScanWarning, stacklevel=3)
        return self.prepare_image(image, intensity)

    def scores_of(self, prepared: Prepared) -> torch.Tensor:
        """The scores (C, X, Y, Z) of a prepared scan, on its grid and on the device of the model."""
        with self._turn, explained_out_of_memory():
            return predict_scores(
                self.predictor,
                _tensor(prepared),
                self.info.patch_size,
                num_classes=self.label_space.num_classes,
                config=self.config,
                device=self.device,
            )

    def prepare(self, scan: Given, *, intensity: str | None = None, layout: Layout | None = None) -> Prepared:
        """A scan as the network sees it: the first half of `predict`, which needs no device and no turn."""
        return self.prepare_image(as_image(scan, layout=layout), intensity)

    def prepare_image(self, image: Image, intensity: str | None = None) -> Prepared:
        """The same for a scan that is in memory."""
        image.check_channels(self.channels, self.info.may_lack)
        scan = partial(apply, image.volume, intensity=self.intensity(intensity), missing=image.missing)
        prepared = scan(self.plan)
        if not self.own_images:
            return prepared
        others = [replace(self.plan, intensity=member.plan.intensity) for member in self.members[1:]]
        together = np.concatenate([prepared.image.data, *(scan(plan).image.data for plan in others)])
        return prepared._replace(image=Volume(together, prepared.image.affine))

    @property
    def strides(self) -> tuple[int, int, int]:
        """What the sides of a window must be divisible by; 1 along z where the network takes slices."""
        own = NetFactory.from_description(self.info.net).strides
        return common_strides([member.strides for member in self.members] or [own])

    @property
    def own_images(self) -> bool:
        """Whether each model of an ensemble sees the scan with intensities of its own."""
        return any(member.plan.intensity != self.plan.intensity for member in self.members)

    def examine(
        self,
        scan: Given,
        *,
        affine: Array | None = None,
        spacing_mm: tuple[float, float, float] | None = None,
        intensity: str | None = None,
        layout: Layout | None = None,
    ) -> Examined:
        """The labels of `predict`, with the same arguments, errors and warnings, and what is to be said about them.

        What is unusual is known of a model that `labelwise calibrate` has measured; else nothing is flagged.
        """
        image = as_image(scan, affine=affine, spacing_mm=spacing_mm, layout=layout)
        found = self.examine_prepared(self._judged(image, intensity, layout))
        return found._replace(labels=image.back(found.labels))

    def examine_prepared(self, prepared: Prepared, progress: ShowProgress = silent) -> Examined:
        """The second half of `examine`: labels (X, Y, Z) on the RAS+ grid of the scan."""
        habits = self.calibration.habits if self.calibration else None
        doubt, features = Doubt(self.temperature), Features()
        restored = self._restored(prepared, progress, doubt, features if habits else None)
        labels = self._cleaned(restored)
        certainty = dict(zip(self.label_space.names, doubt.certainties(), strict=True))
        flags = flags_of(habits, restored.data, labels.data, certainty, features.vector()) if habits else ()
        return Examined(labels, certainty, tuple(flags))

    def _cleaned(self, labels: Volume) -> Volume:
        return replace(labels, data=postprocess(labels.data, self.config.postprocess))

    def _restored(
        self,
        prepared: Prepared,
        progress: ShowProgress = silent,
        doubt: Doubt | None = None,
        features: Features | None = None,
    ) -> Volume:
        """The labels before the clean-up, on the RAS+ grid of the scan. `doubt` and `features` hear of the windows."""
        listening = features.watch(self.predictor) if features else nullcontext()
        with self._turn, explained_out_of_memory(), listening:
            labels = predict_labels(
                self.predictor,
                _tensor(prepared),
                self.info.patch_size,
                num_classes=self.label_space.num_classes,
                config=self.config,
                device=self.device,
                progress=progress,
                doubt=doubt,
            )
        return undo(labels, prepared.undo)

    def intensity(self, asked: str | None) -> str:
        """The rule for the intensities of a scan: the one that is asked for, or the only one.

        Errors
            ConfigError     unknown, or not said although the model knows several
        """
        known = self.info.intensities
        if asked is None and len(known) == 1:
            return known[0]
        if asked is not None and asked in known:
            return asked
        what = f"the model knows no intensities '{asked}'" if asked else "the model knows several kinds"
        raise ConfigError(what, expected=", ".join(known), do="choose one by --intensity")


def _tensor(prepared: Prepared) -> torch.Tensor:
    return torch.from_numpy(np.require(prepared.image.data, np.float32, ["C", "W"]))


def save_model(folder: Path, info: Mapping[str, Any], method: Method, nets: NetFactory) -> ModelInfo:
    """Write a model folder for a trained method, whole or not at all.

    `info` holds the fields of `ModelInfo` except ``predictor``, ``net`` and ``format``.
    """
    predictor = method.predictor()
    plain = isinstance(predictor, Softmax) and _same_network(predictor.network, nets.network())
    kind: Literal["softmax", "method"] = "softmax" if plain else "method"
    kept = predictor.network if isinstance(predictor, Softmax) and plain else predictor
    complete = build_settings(ModelInfo, {**info, "predictor": kind, "net": nets.description()}, DESCRIPTION)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        save_tensors(temporary / WEIGHTS, kept.state_dict(), {"format": FORMAT})
        write_json(temporary / DESCRIPTION, {**vars(complete)})
        write_text(temporary / CARD, _card(folder, temporary / WEIGHTS, complete))
    return complete


def _card(folder: Path, weights: Path, info: ModelInfo) -> str:
    """The card of a model; that which lies there, with scores and what people wrote, if the weights are the same."""
    if (
        (folder / CARD).exists()
        and (folder / WEIGHTS).exists()
        and hash_file(folder / WEIGHTS) == hash_file(weights)
    ):
        return with_licence((folder / CARD).read_text(encoding="utf-8"), info.training)
    return card_text(vars(info))


def load_model(
    folder: Path | str | Sequence[Path | str],
    device: torch.device | str = "auto",
    *,
    classifier: str | None = None,
) -> Model:
    """The model of `labelwise.load_model`, whose arguments and errors these are, without its judge of scans."""
    if not isinstance(folder, str | Path | Sequence):
        raise ConfigError(
            "a model is named by its folder, or several by a list of theirs", found=repr(folder)
        )
    if not isinstance(folder, str | Path):
        models = [load_model(each, device, classifier=classifier) for each in folder]
        return models[0] if len(models) == 1 else _ensemble(models)
    where = choose_device(str(device))
    folder = model_folder(folder)
    with _naming(folder / DESCRIPTION):
        info = _read_description(folder / DESCRIPTION)
    if classifier is not None:
        info = _with_classifier(info, classifier, folder)
    with _naming(folder / DESCRIPTION):
        config = build_settings(InferenceConfig, info.inference, "inference")
        label_space, plan = LabelSpace(info.classes), Plan.from_json(info.plan)
        with memory_explained(
            "the memory is too small for this model", do="compare model.json with a copy of the model folder"
        ):
            predictor = _load_predictor(info, folder / WEIGHTS)
    if info.thresholds and isinstance(predictor, IndependentMaps):
        predictor.thresholds = in_order(info.thresholds, label_space.structures)
    use_fast_layout(predictor)
    predictor.eval().requires_grad_(False).to(where)
    name = _model_id(folder / WEIGHTS, info)
    calibration = read_calibration(folder, name) if classifier is None else None
    return Model(info, label_space, plan, config, predictor, where, name, calibration)


def _ensemble(models: Sequence[Model]) -> Model:
    """Several models as one; the order in which they are named does not matter.

    Errors
        ConfigError     none, one of them twice, or models that cannot answer together
    """
    if not models:
        raise ConfigError("no model named")
    named = {f"{model.info.name} ({model.id})": model for model in sorted(models, key=lambda model: model.id)}
    if len(named) < len(models):
        raise ConfigError("a model is named twice", found=", ".join(f"'{m.info.name}'" for m in models))
    alike: dict[str, dict[str, Any]] = {
        "their classes": {name: model.label_space.names for name, model in named.items()},
        "the intensity rules that they know": {name: model.info.intensities for name, model in named.items()},
        "the number of channels of a scan": {name: model.channels for name, model in named.items()},
        "how they score": {name: _scoring(model) for name, model in named.items()},
        "the settings of their prediction": {name: _deciding(model) for name, model in named.items()},
    }
    for what, values in alike.items():
        require_equal(what, values)
    first = next(iter(named.values()))
    plan = common_plan({name: model.plan for name, model in named.items()})
    clean_up = common_postprocess(
        {name: model.config.postprocess for name, model in named.items()}, first.label_space.structures
    )
    strides = [model.strides for model in named.values()]
    patch = common_patch({name: model.info.patch_size for name, model in named.items()}, strides)
    for name, model in named.items():
        if (model.plan.spacing_mm, model.info.patch_size) != (plan.spacing_mm, patch):
            logger.info(
                "%s answers at %s mm in windows of %s; it was trained at %s mm in %s",
                name, plan.spacing_mm, patch, model.plan.spacing_mm, model.info.patch_size,
            )  # fmt: skip
    if any(model.calibration for model in named.values()):
        logger.info("the models were calibrated one by one; the certainty of their mean is not")
    members = tuple(Member(model.info.name, model.id, model.plan, model.strides) for model in named.values())
    own_images = any(member.plan.intensity != plan.intensity for member in members)
    average = Average([model.predictor for model in named.values()], own_images=own_images).eval()
    info = replace(
        first.info,
        name=" + ".join(member.name for member in members),
        plan=plan.to_json(),
        patch_size=patch,
        training=joined_training([model.info.training for model in named.values()]),
        thresholds={},  # each member has its own
        may_lack=tuple(sorted(set.intersection(*(set(model.info.may_lack) for model in named.values())))),
    )
    decisive = json.dumps([[member.id for member in members], info.plan, patch], sort_keys=True)
    name = hashlib.sha256(decisive.encode()).hexdigest()[:16]
    config = replace(first.config, postprocess=clean_up)
    return Model(info, first.label_space, plan, config, average, first.device, name, members=members)


def _scoring(model: Model) -> str:
    """Scores of different scales have no mean: the background of independent maps is 0.5 everywhere."""
    independent = isinstance(model.predictor, IndependentMaps)
    return "each structure by a map of its own" if independent else "one choice among all classes"


def _deciding(model: Model) -> dict[str, Any]:
    settings = deciding(vars(model.config))
    del settings["postprocess"]  # the clean-ups are joined
    return settings


def model_folder(folder: Path | str) -> Path:
    """The model folder that is meant: itself, or that in the folder of a run."""
    folder = Path(folder)
    inside = folder / "model"
    return inside if not (folder / DESCRIPTION).exists() and (inside / DESCRIPTION).exists() else folder


def model_info(folder: Path | str) -> ModelInfo:
    """What a model folder, or that in the folder of a run, says of its model; the weights are not read.

    Errors
        CheckpointError     not a model
    """
    return _read_description(model_folder(folder) / DESCRIPTION)


def model_ids(folder: Path) -> tuple[str, ...]:
    """`Model.id` of the model in a folder or a run, with its own classifier and with each that could be chosen.

    Errors
        CheckpointError     not a model
    """
    folder, info = model_folder(folder), model_info(folder)
    kinds = [info, *(_with_classifier(info, name, folder) for name in find_method(info.method).classifiers)]
    return tuple(_model_id(folder / WEIGHTS, kind) for kind in kinds)


def _model_id(weights: Path, info: ModelInfo) -> str:
    """A digest of all that decides what a model says of a scan."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    decisive = (
        info.classes,
        info.plan,
        info.net,
        info.method,
        info.method_settings,
        info.predictor,
        info.patch_size,
        *([info.thresholds] if info.thresholds else []),
    )
    digest.update(json.dumps(decisive, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _with_classifier(info: ModelInfo, classifier: str, folder: Path) -> ModelInfo:
    known = find_method(info.method).classifiers
    if classifier not in known:
        raise ConfigError(
            f"the model has no classifier '{classifier}'{did_you_mean(classifier, known)}",
            file=folder,
            found=f"a model of the method '{info.method}'",
            expected=", ".join(known) or "no choice: this method has one way to decide only",
        )
    return replace(info, method_settings={**info.method_settings, "classifier": classifier})


def _load_predictor(info: ModelInfo, file: Path) -> nn.Module:
    nets = NetFactory.from_description(info.net)
    _check_size(nets, file)
    weights, _ = load_tensors(file)
    if info.predictor == "softmax":
        network = nets.network()
        load_weights(network, weights, file)
        return Softmax(network)
    kind = find_method(info.method)
    method = kind(nets, build_settings(kind.Config, info.method_settings, f"settings of {info.method}"))
    predictor = method.predictor()
    load_weights(predictor, weights, file)
    return predictor


def _check_size(nets: NetFactory, file: Path) -> None:
    """Refuse a description whose network has more numbers than the file of its weights, before it is built.

    Errors
        CheckpointError     the weights are of another network
    """
    there = sum(prod(shape) for shape in load_shapes(file).values())
    with torch.device("meta"):  # sizes without memory
        network = nets.network()
    needed = sum(parameter.numel() for parameter in network.parameters())
    if needed > there * MOST_UNSAVED:
        raise CheckpointError(
            "the weights belong to another network or method",
            file=file,
            found=f"{there:,} numbers",
            expected=f"{needed:,} for the network of {DESCRIPTION}",
            do="restore a copy of the model folder, or train it again",
        )


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """What is wrong in a model is not the user's setting: the error names the file."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        if isinstance(error, CheckpointError) and error.file is not None:
            raise
        raise CheckpointError(
            f"the description of the model is wrong: {error.what}",
            file=file,
            found=error.found,
            expected=error.expected,
            do="restore a copy of the model folder, or train it again",
        ) from error


def _same_network(network: nn.Module, plain: nn.Module) -> bool:
    """Whether both compute the same from the same weights: layers without weights count too, as they print."""

    def shapes(module: nn.Module) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in module.state_dict().items()}

    return repr(network) == repr(plain) and shapes(network) == shapes(plain)


def _read_description(file: Path) -> ModelInfo:
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "this is not a model folder",
            file=file.parent,
            found=str(error),
            expected=f"a folder with {DESCRIPTION} and {WEIGHTS}, or a run that finished its training",
        ) from error
    version = values.get("format") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            "written by a newer version of labelwise", file=file, do="update labelwise", code="newer-version"
        )
    info: ModelInfo = build_settings(ModelInfo, values, str(file))
    if tuple(info.classes) == (BACKGROUND,):
        raise CheckpointError("the model knows no structure", file=file)
    return info
