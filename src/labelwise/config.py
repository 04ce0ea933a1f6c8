"""From a recipe and overrides to one RunConfig, and back to ``run.toml``.

Order: defaults < the recipe that ``extends`` names < the recipe < ``--set key=value``. Each table is the settings
dataclass of its owner; an unknown key is an error with a suggestion.

    data = "my_data"
    seed = 0
    [method]
    name = "mean_teacher"
    [method.settings]
    consistency_weight = 0.1
    [sampling]
    patch_size = [64, 64, 48]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt
from pydantic.dataclasses import dataclass

from labelwise.documents import decode, parse_toml
from labelwise.errors import ConfigError, did_you_mean
from labelwise.infer.sliding_window import InferenceConfig, check_windows
from labelwise.loading.augment import AugmentConfig
from labelwise.loading.sampling import SamplingConfig
from labelwise.methods import find_method, stages_of
from labelwise.nets.factory import NetFactory
from labelwise.plan.choose import PLANNED
from labelwise.preprocess.intensity import IntensityRule
from labelwise.settings import build_settings, by_present_names, merged, present_name, put, to_toml
from labelwise.train.distributed import DeviceConfig
from labelwise.train.loop import LoopConfig
from labelwise.types import ANNOTATED, CORRECTED, VERIFIED

STRICT = ConfigDict(extra="forbid")
# A setting, or a table, that decides another one: who sets the width of a network means the one that has it.
DECIDES = {
    "augment.preset": ("augment.mirror_axes", "augment.on_side"),
    "prepare.shape": ("prepare.spacing_mm",),
    "net.settings": ("net.name",),
    "method.settings": ("method.name",),
}
# What is said of patches beside a preset: where they may turn depends on the classes and the scans.
BESIDE_PRESET = ("sides", "mirror_axes", "on_side", "unit_range")
State = Literal["annotated", "corrected", "verified", "predicted"]
# What is trained where the recipe names no other; "auto" is the U-Net, or the network that the method needs.
AUTO = "auto"
NAMES: dict[str, dict[str, Any]] = {"net": {"name": AUTO}, "method": {"name": "supervised"}}


@dataclass(frozen=True, config=STRICT)
class PrepareConfig:
    """How scans are brought to one grid; what is not set comes from the fingerprint of the data."""

    spacing_mm: tuple[float, float, float] | None = None  # of the prepared scans, along x, y, z
    shape: tuple[int, int, int] | None = None  # fixed number of voxels per axis instead; 0 keeps an axis
    crop: Literal["none", "nonzero", "body"] | None = None
    # By what they are (ct, mr, normalised): clip, mean and std of a protocol, in place of those of the training scans.
    intensity: dict[str, IntensityRule] | None = None
    store: str | None = None  # folder of prepared scans; default: "store" beside the manifest


@dataclass(frozen=True, config=STRICT)
class Choice:
    """A network or a method by name, with its own settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class NetChoice(Choice):
    """A network, and how it is trained."""

    # Cases over which batch norm takes its statistics, in the order of the batch, labelled ones first; 0: over all.
    batch_norm_cases: NonNegativeInt = 0


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Everything that decides a training."""

    data: str = ""  # folder of the manifest
    # What is not set: plan follows from the scans, the labels and the machine when the training begins; fixed is the
    # default of every setting.
    base: Literal["plan", "fixed"] = "plan"
    # The settings that are still to be planned; filled in by `load_config` with what nobody set.
    planned: tuple[str, ...] = field(default=(), compare=False)
    # The states of labels that teach; "predicted" are proposals that no person has judged.
    learn_from: tuple[State, ...] = (ANNOTATED, CORRECTED, VERIFIED)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    select: Literal["last", "best"] = "last"  # which weights become the model
    # From which score on a structure counts, in methods with a map for each structure: chosen at the end on annotated
    # cases, or 0.5 as most of their papers have it
    thresholds: Literal["chosen", "half"] = "chosen"
    preset: str = ""  # the method's settings as published for a data set; those of [method.settings] go first
    start_from: str | None = (
        None  # folder of a run that trained the stage before the last, of a method with stages
    )
    # what the networks begin with: folder of a finished run or of a model, or file of a public encoder
    warm_start: str | None = None
    licence: str = ""  # terms of the trained weights, for their card
    workers: Annotated[int, Field(ge=0)] = 0  # processes that load batches; 0: in the training process
    prepare: PrepareConfig = PrepareConfig()
    net: NetChoice = NetChoice(**NAMES["net"])
    method: Choice = Choice(**NAMES["method"])
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    train: LoopConfig = LoopConfig()
    device: DeviceConfig = DeviceConfig()
    inference: InferenceConfig = InferenceConfig()

    def __post_init__(self) -> None:
        object.__setattr__(self, "planned", tuple(present_name(name) for name in self.planned))
        if unknown := set(self.planned) - set(PLANNED):
            raise ConfigError("this cannot be planned", found=", ".join(unknown), expected=", ".join(PLANNED))

    @property
    def dims(self) -> int:
        """2 if patches are slices, else 3."""
        return self.sampling.dims

    def nets(self, *, in_channels: int, num_classes: int) -> NetFactory:
        """The factory of its network, for data with so many modalities and classes."""
        return NetFactory(
            self.net.name,
            self.net.settings,
            dims=self.dims,
            in_channels=in_channels,
            num_classes=num_classes,
            batch_norm_cases=self.net.batch_norm_cases,
        )

    def to_toml(self) -> str:
        """The resolved settings; ``labelwise train run.toml`` repeats the run."""
        return to_toml(asdict(self))


def load_config(
    recipe: Path | str | None = None, overrides: Mapping[str, Any] | None = None, **values: Any
) -> RunConfig:
    """Read a recipe, put `overrides` (dotted keys: {"train.steps": 100}) and keyword values on top, and check it all.

    Errors
        ConfigError     missing or garbled recipe, unknown key, wrong type, unknown method or network,
                        settings that the method or network does not know
    """
    top: dict[str, Any] = {}
    for key, value in [*values.items(), *(overrides or {}).items()]:
        put(top, key, deepcopy(value))  # what the caller holds stays as it is
    top = by_present_names(top)
    tree = merged(read_recipe(find_recipe(recipe)) if recipe else NAMES, top)
    where = str(recipe) if recipe else "the settings of this run"
    train = tree.setdefault("train", {})
    if isinstance(train, dict) and isinstance(train.get("steps"), int):
        train["steps"] = [train["steps"]]
    config = build_settings(RunConfig, tree, where)
    if isinstance(train, dict) and "steps" not in train:  # as many for each stage
        stages = 1 if config.start_from else len(stages_of(find_method(config.method.name)))
        config = replace(config, train=replace(config.train, steps=config.train.steps * stages))
    if config.base == "plan" and "planned" not in tree:
        config = replace(
            config, planned=_open_settings(read_recipe(find_recipe(recipe), {}) if recipe else {}, top)
        )
    return _with_checked_choices(config)


def setting(config: RunConfig, dotted: str) -> Any:
    """The value of a setting: ``setting(config, "train.optimizer.rate")``."""
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def with_settings(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The config with other values of some settings (dotted keys), which need not be planned any more.

    Errors
        ConfigError     as `load_config`
    """
    tree = asdict(config)
    top: dict[str, Any] = {}
    values = by_present_names(values)
    for key, value in values.items():
        put(top, key, value)
    for table, chosen in NAMES.items():  # settings of another network or method mean nothing
        if top.get(table, {}).get("name", tree[table]["name"]) != tree[table]["name"]:
            tree[table] = {**tree[table], "settings": {}, **chosen}
        if "settings" in top.get(table, {}):
            tree[table]["settings"] = {}
    if "augment.preset" in values:  # all else follows from it, but what was planned only beside a preset
        tree["augment"] = {name: tree["augment"][name] for name in BESIDE_PRESET}
    tree["planned"] = [name for name in config.planned if name not in values]
    return _with_checked_choices(build_settings(RunConfig, merged(tree, top), "the settings of this run"))


def _open_settings(recipe: Mapping[str, Any], top: Mapping[str, Any]) -> tuple[str, ...]:
    """What a plan may decide, because neither the recipe nor the options say anything of it."""
    given = {*_leaves(recipe), *_leaves(top)}
    given |= {other for name, decided in DECIDES.items() if _is_given(name, given) for other in decided}
    if any(key.startswith("augment.") for key in given - {f"augment.{name}" for name in BESIDE_PRESET}):
        given.add("augment.preset")  # single changes were meant for the preset that they stand beside
    return tuple(name for name in PLANNED if not _is_given(name, given))


def _is_given(name: str, given: Collection[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in given)


def _leaves(tree: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += _leaves(value, f"{path}{key}.") if isinstance(value, Mapping) and value else [path + key]
    return found


def _with_checked_choices(config: RunConfig) -> RunConfig:
    """The config with every setting of its method and network written out."""
    method = find_method(config.method.name)
    if config.net.name == AUTO:
        nets = method.card.nets
        own = "unet" if nets is None or "unet" in nets else min(nets)
        config = replace(config, net=replace(config.net, name=own))
    settings = build_settings(
        method.Config,
        {**_preset(config), **config.method.settings},
        f"[method.settings] of {config.method.name}",
    )
    factory = config.nets(in_channels=1, num_classes=2)
    if config.dims not in method.card.dims:
        raise ConfigError(
            f"{config.method.name} works in {' and '.join(f'{d}D' for d in sorted(method.card.dims))} only",
            found=f"sampling.patch_size = {list(config.sampling.patch_size)}",
        )
    if method.card.nets is not None and config.net.name not in method.card.nets:
        raise ConfigError(
            f"{config.method.name} cannot use the network '{config.net.name}'",
            expected=", ".join(sorted(method.card.nets)),
        )
    _check_patch_size(config, factory)
    return replace(
        config,
        method=Choice(config.method.name, asdict(settings)),
        net=replace(config.net, settings=dict(factory.description()["settings"])),
    )


def _preset(config: RunConfig) -> Mapping[str, Any]:
    """The settings of the preset that is asked for."""
    presets = find_method(config.method.name).presets
    if not config.preset or config.preset in presets:
        return presets.get(config.preset, {})
    raise ConfigError(
        f"{config.method.name} has no preset '{config.preset}'{did_you_mean(config.preset, presets)}",
        expected=", ".join(presets) or "none: its defaults are what was published",
    )


def _check_patch_size(config: RunConfig, nets: NetFactory) -> None:
    patch, found = config.sampling.patch_size, f"sampling.patch_size = {list(config.sampling.patch_size)}"
    if any(size % stride for size, stride in zip(patch, nets.strides, strict=False)):
        equal = len(set(nets.strides)) == 1
        divisor = nets.strides[0] if equal else " x ".join(map(str, nets.strides))
        raise ConfigError(
            f"the patch size must be divisible by {divisor} for the network '{config.net.name}'",
            found=found,
        )
    if patch[: config.dims] == nets.strides:
        raise ConfigError(
            f"the network '{config.net.name}' would see such a patch as a single voxel on its coarsest scale",
            found=found,
            expected=f"at least {2 * nets.strides[0]} along one axis",
        )
    config.augment.check(patch)
    check_windows(config.inference, patch, nets.strides)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: ``la2018/bcp`` -> its file."""
    package = Path(__file__).parent
    folders = [package / "recipes", package.parents[1] / "recipes"]  # as installed, or in a checkout
    folder = next((folder for folder in folders if folder.is_dir()), None)
    files = sorted(folder.rglob("*.toml")) if folder else []
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files if folder}


def find_recipe(recipe: Path | str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    ``recipes/la2018/bcp.toml``, as the pages of the documentation write it, means the same as ``la2018/bcp`` where
    there is no such file.

    Errors
        ConfigError     neither a file nor a name
    """
    path = Path(recipe)
    if path.exists():
        return path
    shipped = shipped_recipes()
    name = path.with_suffix("").as_posix() if path.suffix == ".toml" else path.as_posix()
    name = name.removeprefix("recipes/")
    if name not in shipped:
        raise ConfigError(
            f"the recipe does not exist{did_you_mean(name, shipped)}",
            file=path,
            expected="the path of a recipe, or a name that `labelwise recipes` lists",
        )
    return shipped[name]


def read_recipe(path: Path, names: Mapping[str, Any] = NAMES) -> dict[str, Any]:
    """The table of a recipe, on top of `names` and the one that it ``extends`` (a path relative to it, one level)."""
    tree = _read_toml(path)
    base: dict[str, Any] = {}
    if "extends" in tree:
        base = _read_toml(path.parent / str(tree.pop("extends")))
        if "extends" in base:
            raise ConfigError("a recipe that is extended may not extend another one", file=path)
    return merged(merged(names, base), tree)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return by_present_names(parse_toml(decode(path.read_bytes())))
    except IsADirectoryError as error:
        raise ConfigError(
            "a folder is no recipe", file=path, do=f"name it as the data set: --data {path}"
        ) from error
    except FileNotFoundError as error:
        raise ConfigError("the recipe does not exist", file=path, code="not-found") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the recipe cannot be read: {error}", file=path, expected="TOML, UTF-8", code="unreadable"
        ) from error
