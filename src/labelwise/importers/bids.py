"""BIDS: raw scans, and segmentations among the derivatives.

    sub-01[/ses-a]/anat/sub-01[_ses-a]_T1w.nii.gz                                   the scan
    derivatives/<pipeline>/sub-01[/ses-a]/anat/sub-01[_ses-a]_dseg.nii.gz           a label map of integers, or
    derivatives/<pipeline>/sub-01[/ses-a]/anat/sub-01[_ses-a]_label-L_mask.nii.gz   one mask per structure L
    derivatives/<pipeline>/dseg.tsv                                                 columns index, name

The table of a label map is the nearest .tsv above it whose entities are all in the name of the map. A segmentation
belongs to the scan of the same subject and session whose entities it repeats. One in another space (space-MNI...)
does not lie on the scan, and is passed over; the option `space` takes scans and segmentations of that space, both
from the derivatives. Participants are groups: no split cuts through one.

Source
    Brain Imaging Data Structure, specification 1.10: "Imaging derivatives", "Common file level metadata fields".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from labelwise.cohort.data_set import Modality, value_table
from labelwise.cohort.manifest import DataSet, Manifest
from labelwise.cohort.text import read_text
from labelwise.errors import ConfigError, DataError, warn_about
from labelwise.formats import Layout, masks, stem
from labelwise.importers.described import about, label_space
from labelwise.importers.listing import annotated_structures, class_names, existing_folder, files_below
from labelwise.types import BACKGROUND, Case

LOOKS_FOR = (
    "sub-<label>/anat/*_T1w.nii.gz and derivatives/<pipeline>/sub-<label>/anat/*_dseg.nii.gz or *_mask.nii.gz"
)
KINDS = ("dseg", "mask")
NO_IMAGES = (*KINDS, "probseg", "xfm", "boldref", "bold", "dwi", "sbref", "epi")
OWN_SPACES = ("orig", "native", "individual", "scanner")
NIFTI = (".nii.gz", ".nii")
DERIVED = ("desc", "label", "seg", "atlas", "scale", "model", "subset", "hemi", "res", "space")

Kind = Literal["dseg", "mask"]
Classes = Mapping[str, int | Sequence[int]]


def matches(folder: Path) -> bool:
    """Whether a folder holds subjects, and segmentations of them among the derivatives."""
    return bool(_subjects(folder)) and (folder / "derivatives").is_dir() and bool(_labels(folder, None))


def scan(
    folder: Path | str,
    *,
    pipeline: str | None = None,
    image: str | Sequence[str] | None = None,
    labels: Kind | None = None,
    desc: str | None = None,
    space: str | None = None,
    classes: Classes | None = None,
    modality: Modality | None = None,
    annotated: Iterable[str] | None = None,
    data_set: str | None = None,
) -> Manifest:
    """The manifest of a BIDS data set with segmentations; all cases are in the training split.

    Parameters
        pipeline    folder of derivatives, if several hold segmentations
        image       suffix of the scans, for example T1w; several are the channels of a case: T1w,FLAIR. Needed
                    where there are several
        labels      dseg or mask; dseg if there are both
        desc        take segmentations with this desc- entity only
        space       take scans and segmentations of this space from the derivatives
        classes     class name -> value or values, instead of the table dseg.tsv
        modality    ct, mr or other; by default ct for the suffix CT, other for pet, else mr
        annotated   the classes that segmented cases are annotated for, if not all
        data_set      name of the data set; the folder's if not given

    Errors
        DataError     the folder is missing or empty, has no scan or no segmentation, or a table is garbled
        ConfigError   an option is missing or wrong
    """
    folder = existing_folder(folder)
    segmentations = _chosen_labels(folder, pipeline, labels, desc, space)
    kind = segmentations[0].suffix
    images = _images(folder, segmentations[0].path, space)
    suffixes = _suffixes(images, image, folder)
    scans = _scans(images, suffixes)
    pairs = _paired(scans, segmentations, kind)
    warn_about(
        "scans without a segmentation are unlabelled cases", [name for name in scans if name not in pairs]
    )
    name = data_set or folder.name
    kind_of_scan = modality or _modality(suffixes)
    if kind == "mask":
        tables, structures_of = _mask_data_set(name, kind_of_scan, pairs)
    else:
        tables, structures_of = _dseg_data_sets(name, kind_of_scan, classes, pairs, folder)
    names = dict.fromkeys(
        structure for table in tables.values() for structure in class_names(table.values.values())
    )
    space_of_labels = label_space(names, folder)
    wanted = annotated_structures(annotated, space_of_labels.structures)
    first = next(iter(tables))
    cases = []
    for case_id, files in scans.items():
        found = pairs.get(case_id)
        table, structures = structures_of.get(case_id, (first, frozenset()))
        label = None if found is None else (found[0].path if kind == "dseg" else found[0].path.parent)
        cases.append(
            Case(
                case_id,
                tuple(file.path for file in files),
                labels=label if structures & wanted else None,
                annotated=structures & wanted,
                group=f"sub-{files[0].place[0]}",
                data_set=table,
                split="train",
            )
        )
    with about(folder):
        return Manifest(space_of_labels, tables, tuple(cases))


# files


def _subjects(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.glob("sub-*") if entry.is_dir())


def _labels(folder: Path, pipeline: str | None) -> list[BidsFile]:
    top = folder / "derivatives" / pipeline if pipeline else folder / "derivatives"
    return [
        file
        for file in named_files(top)
        if file.suffix in KINDS and (file.suffix == "dseg" or "label" in file.entities)
    ]


def _in_own_space(file: BidsFile) -> bool:
    space = file.entities.get("space", "orig")
    return space in OWN_SPACES or re.fullmatch(r"T1w|T2w|FLAIR|PDw|CT|ct", space) is not None


def _chosen_labels(
    folder: Path, pipeline: str | None, kind: str | None, desc: str | None, space: str | None
) -> list[BidsFile]:
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"unknown kind of labels '{kind}'", expected=", ".join(KINDS), code="unknown-name")
    every = _labels(folder, pipeline)
    if not every:
        raise DataError(
            "there are no segmentations among the derivatives",
            file=folder / "derivatives" / (pipeline or ""),
            expected="*_dseg.nii.gz or *_label-<name>_mask.nii.gz",
        )
    on_scan = [f for f in every if (f.entities.get("space") == space if space else _in_own_space(f))]
    on_scan = [f for f in on_scan if desc is None or f.entities.get("desc") == desc]
    elsewhere = sorted(
        {f.entities.get("space", "") for f in every} - {f.entities.get("space", "") for f in on_scan}
    )
    warn_about("spaces whose segmentations are passed over", [name for name in elsewhere if name])
    kind = kind or next((known for known in KINDS if any(f.suffix == known for f in on_scan)), None)
    found = [f for f in on_scan if f.suffix == kind]
    if not found:
        raise DataError(
            "no segmentation is left",
            file=folder / "derivatives",
            found=", ".join(sorted({f.path.name.split("_", 1)[-1] for f in every})[:5]),
            do="choose others: --set space=..., --set desc=..., --set labels=mask",
        )
    warn_about(
        f"segmentations beside the {kind} files are passed over",
        [f.path.name for f in on_scan if f.suffix != kind],
    )
    pipelines = sorted({f.path.relative_to(folder / "derivatives").parts[0] for f in found})
    if len(pipelines) > 1:
        raise ConfigError(
            "several pipelines have segmentations",
            file=folder / "derivatives",
            found=", ".join(pipelines),
            do=f"choose one: --set pipeline={pipelines[0]}",
        )
    return found


def _images(folder: Path, segmentation: Path, space: str | None) -> list[BidsFile]:
    if space is None:
        raw = [file for subject in _subjects(folder) for file in named_files(subject)]
        return [file for file in raw if file.suffix not in NO_IMAGES]
    pipeline = segmentation.relative_to(folder / "derivatives").parts[0]
    derived = named_files(folder / "derivatives" / pipeline)
    return [f for f in derived if f.suffix not in NO_IMAGES and f.entities.get("space") == space]


def _suffixes(images: Sequence[BidsFile], stated: str | Sequence[str] | None, folder: Path) -> list[str]:
    found = sorted({file.suffix for file in images})
    if stated is None and len(found) > 1:
        raise ConfigError(
            "there are several kinds of scans",
            file=folder,
            found=", ".join(found),
            do=f"choose one, or several as channels: --set image={found[0]}",
        )
    named = stated.split(",") if isinstance(stated, str) else list(stated or found)
    chosen = [name.strip() for name in named]
    if missing := [name for name in chosen if name not in found]:
        raise ConfigError(f"there are no scans '{missing[0]}'", file=folder, expected=", ".join(found))
    if not chosen:
        raise DataError("there are no scans", file=folder, expected=LOOKS_FOR)
    return chosen


def _scans(images: Sequence[BidsFile], suffixes: Sequence[str]) -> dict[str, list[BidsFile]]:
    """Case -> its files, one for each suffix; several suffixes that agree in all entities are one case."""
    cases: dict[str, dict[str, BidsFile]] = {}
    for file in images:
        if file.suffix in suffixes:
            name = "_".join(f"{key}-{value}" for key, value in file.of_scan.items())
            if (other := cases.setdefault(name, {}).setdefault(file.suffix, file)) is not file:
                raise DataError("two scans have the same name", case=name, file=file.path, found=other.path)
    complete = {name: files for name, files in cases.items() if len(files) == len(suffixes)}
    warn_about(f"scans without all of {', '.join(suffixes)} are left out", sorted(set(cases) - set(complete)))
    if not complete:
        raise DataError(
            "no case has all kinds of scans", file=images[0].path.parent, expected=", ".join(suffixes)
        )
    return {name: [complete[name][suffix] for suffix in suffixes] for name in sorted(complete)}


def _paired(
    scans: Mapping[str, Sequence[BidsFile]], segmentations: Sequence[BidsFile], kind: str
) -> dict[str, list[BidsFile]]:
    """Case -> its segmentations: one label map, or masks of one folder."""
    pairs: dict[str, list[BidsFile]] = {}
    lost = []
    for file in segmentations:
        near = {name: files[0] for name, files in scans.items() if files[0].place == file.place}
        mine, agreeing = file.of_scan, []
        for name, scan_file in near.items():
            theirs = scan_file.of_scan
            if (
                all(mine.get(key, value) == value for key, value in theirs.items())
                and mine.keys() <= theirs.keys()
            ):
                agreeing.append(name)
        if not agreeing:
            lost.append(file.path.name)
        elif len(agreeing) > 1:
            raise DataError(
                "the segmentation fits several scans",
                case=agreeing[0],
                file=file.path,
                found=", ".join(agreeing),
                do="repeat the entities of its scan in its name (acq-, run-, ...)",
            )
        else:
            pairs.setdefault(agreeing[0], []).append(file)
    warn_about("segmentations without a scan are left out", lost)
    if not pairs:
        raise DataError(
            "no segmentation belongs to a scan", file=segmentations[0].path, found=", ".join(list(scans)[:3])
        )
    for name, files in pairs.items():
        labels = [f.entities.get("label", "") if kind == "mask" else "" for f in files]
        if len(set(labels)) < len(labels) or len({f.path.parent for f in files}) > 1:
            raise DataError(
                "there are several segmentations of one scan",
                case=name,
                file=files[1].path,
                found=", ".join(f.path.name for f in files[:3]),
                do="choose one: --set desc=..., or --set space=...",
            )
    return pairs


# what the values mean


def _mask_data_set(
    name: str,
    modality: Modality,
    pairs: Mapping[str, Sequence[BidsFile]],
) -> tuple[dict[str, DataSet], dict[str, tuple[str, frozenset[str]]]]:
    together: dict[Path, list[str]] = {}
    for case, files in pairs.items():
        together.setdefault(files[0].path.parent, []).append(case)
    for folder, cases in together.items():
        if len(cases) > 1:
            raise DataError(
                "masks of several scans lie in one folder: their names do not tell them apart",
                case=cases[0],
                file=folder,
                found=", ".join(cases[:3]),
                do="keep one scan per session, or write label maps (*_dseg.nii.gz)",
            )
    for case, files in pairs.items():
        there = masks.names(files[0].path.parent)
        for file in files:
            if there[file.entities["label"]] != file.path:
                raise DataError(
                    "two masks of one label lie in one folder: their names do not tell them apart",
                    case=case,
                    file=file.path,
                    found=there[file.entities["label"]].name,
                    do="move the masks that are not wanted to another folder",
                )
    segments = tuple(sorted({file.entities["label"] for files in pairs.values() for file in files}))
    values = {0: BACKGROUND, **dict(enumerate(segments, start=1))}
    table = DataSet(name, values, modality, Layout(segments=segments))
    known = {case: frozenset(file.entities["label"] for file in files) for case, files in pairs.items()}
    return {name: table}, {case: (name, structures) for case, structures in known.items()}


def _dseg_data_sets(
    name: str,
    modality: Modality,
    classes: Classes | None,
    pairs: Mapping[str, Sequence[BidsFile]],
    top: Path,
) -> tuple[dict[str, DataSet], dict[str, tuple[str, frozenset[str]]]]:
    """One data set for each table of values."""
    data_sets: dict[str, DataSet] = {}
    known: dict[str, tuple[str, frozenset[str]]] = {}
    tables: dict[Path, dict[int, str]] = {}
    for case, (file, *_) in pairs.items():
        if classes:
            values = value_table(classes)
        else:
            table = table_of(file, top)
            values = tables[table] if table in tables else tables.setdefault(table, read_table(table))
        key = next(
            (key for key, known_data_set in data_sets.items() if known_data_set.values == values), None
        )
        if key is None:
            key = name if not data_sets else f"{name}_{len(data_sets) + 1}"
            data_sets[key] = DataSet(key, values, modality)
        known[case] = (key, data_sets[key].structures)
    return data_sets, known


def _modality(suffixes: Sequence[str]) -> Modality:
    """ct and pet are suffixes of their own; all others are sequences of MR."""
    names = {name.lower() for name in suffixes}
    return "ct" if names == {"ct"} else "other" if "pet" in names else "mr"


# files: the entities in their names, and the tables that say what label values mean


class BidsFile(NamedTuple):
    """A file whose name is made of entities: ``sub-01_run-2_T1w.nii.gz``."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def place(self) -> tuple[str, str]:
        """Subject and session."""
        return self.entities.get("sub", ""), self.entities.get("ses", "")

    @property
    def of_scan(self) -> dict[str, str]:
        """The entities that a scan and its segmentations share."""
        return {name: value for name, value in self.entities.items() if name not in DERIVED}


def _parsed(path: Path) -> BidsFile | None:
    *pairs, suffix = stem(path).split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return BidsFile(path, entities, suffix) if "sub" in entities and len(entities) == len(pairs) else None


def named_files(folder: Path) -> list[BidsFile]:
    """The NIfTI files below a folder that are named after BIDS, sorted by path; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [file for path in files_below(folder, NIFTI) if (file := _parsed(path)) is not None]


def table_of(file: BidsFile, top: Path) -> Path:
    """The nearest table above a label map whose entities are all in the name of the map; `top` is the last place.

    Errors
        ConfigError   there is none
    """
    folder = file.path.parent
    while True:
        for table in sorted(folder.glob("*dseg.tsv"), key=lambda table: (-len(table.name), table.name)):
            *pairs, suffix = table.stem.split("_")
            if suffix == "dseg" and all(
                file.entities.get(*pair.split("-", 1)[:1]) == pair.partition("-")[2] for pair in pairs
            ):
                return table
        if folder == top or folder == folder.parent:
            break
        folder = folder.parent
    raise ConfigError(
        "no table says what the label values mean",
        file=file.path,
        expected="dseg.tsv with the columns index and name, beside it or above",
        do="add the table, or state the classes: --classes liver=1,spleen=2",
    )


def read_table(table: Path) -> dict[int, str]:
    """Label value -> class name; 0 is the background if it has no row.

    Errors
        DataError   a column is missing, a row names no value or no class, or a value stands for two classes
    """
    lines = [
        line.split("\t")
        for line in read_text(table, missing="the table is missing").splitlines()
        if line.strip()
    ]
    header = [cell.strip().lower() for cell in lines[0]] if lines else []
    if "index" not in header or "name" not in header:
        raise DataError(
            "the table has no columns index and name", file=f"{table}, row 1", found=" ".join(header)
        )
    index, name = header.index("index"), header.index("name")
    values: dict[int, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        cells = [cell.strip() for cell in line] + [""] * len(header)
        if not re.fullmatch(r"\d{1,9}", cells[index], re.ASCII) or not cells[name]:
            raise DataError(
                "the row names no value and class",
                file=f"{table}, row {number}",
                found=ascii("\t".join(line)[:200]),
                expected="an integer in the column 'index', a word in the column 'name'",
            )
        label = BACKGROUND if cells[name].lower() == BACKGROUND else cells[name]
        if values.setdefault(int(cells[index]), label) != label:
            raise DataError(
                "the value stands for two classes", file=f"{table}, row {number}", found=cells[index]
            )
    values.setdefault(0, BACKGROUND)
    return dict(sorted(values.items()))
