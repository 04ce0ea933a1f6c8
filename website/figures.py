"""What the figure of each method shows: the views of a case, the networks that see them, and the terms they end in.

The cases on the left are those of the method's card; a test compares the terms with what its page says is logged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# How a view is drawn.
Look = Literal["plain", "noise", "strong", "box", "blocks", "pyramid"]
# A network that is trained, one that follows another or is fixed, something that is remembered.
Kind = Literal["trained", "followed", "memory"]
# What a term learns from: the labels, other predictions, both, or neither (a penalty of the weights).
Learns = Literal["labels", "predictions", "both", "neither"]
# Which cases a view is made of: all, those with an annotated class, those in which something is left open.
Cases = Literal["all", "labelled", "open"]


@dataclass(frozen=True)
class View:
    """What is made of a case before a network sees it."""

    look: Look
    caption: str
    of: Cases = "all"


@dataclass(frozen=True)
class Net:
    """A network, a part of one, or a memory."""

    caption: str
    kind: Kind = "trained"


@dataclass(frozen=True)
class Term:
    """A term of the loss, by its logged name; an end of ``*`` stands for several."""

    learns: Learns
    caption: str


@dataclass(frozen=True)
class Figure:
    """Nodes by name, and arrows between them.

    `arrows` are pairs "from > to" (images, features and answers), "from - to" (answers that are followed, without a
    gradient) and "from ~ to" (weights: one network makes those of the other).
    """

    views: dict[str, View]
    nets: dict[str, Net]
    terms: dict[str, Term]
    arrows: tuple[str, ...]


X = View("plain", "as drawn")
OPEN = View("plain", "as drawn", of="open")
NETWORK, STUDENT = Net("network"), Net("student")
TEACHER = Net("teacher: its average", "followed")


def _one_network(caption: str, **terms: Term) -> Figure:
    """A method of one network that sees every case once."""
    every = {"supervised": Term("labels", caption), **terms}
    return Figure(
        {"x": X}, {"network": NETWORK}, every, ("x > network", *(f"network > {name}" for name in every))
    )


# The arrows of a student that agrees with its teacher, who sees noise.
CONSISTENCY = (
    "x > student",
    "noisy > teacher",
    "student > supervised",
    "student > consistency",
    "teacher - consistency",
    "student ~ teacher",
)

FIGURES: dict[str, Figure] = {
    "naive": _one_network("label 0 is read as background"),
    "supervised": _one_network("label 0: background, or a class not annotated"),
    "target_adaptive": _one_network("what is not annotated is merged with background"),
    "marginal_exclusion": _one_network(
        "label 0: background, or a class not annotated",
        exclusion=Term("labels", "no structure where another is labelled"),
    ),
    "leaf_dice": _one_network("voxels of unknown class belong to none"),
    "multi_talent": _one_network("one yes-or-no map for each structure"),
    "pl_seg": _one_network(
        "structures weighted by their difficulty",
        contrast=Term("predictions", "maps of classes stay apart"),
        distillation=Term("predictions", "coarse scales imitate fine ones"),
    ),
    "urpc": _one_network(
        "every scale of the decoder", consistency=Term("predictions", "scales agree with their mean")
    ),
    "dtc": _one_network(
        "segmentation and distance map", consistency=Term("predictions", "the two describe one shape")
    ),
    "self_training": Figure(
        {"strong": View("box", "strong, spliced"), "x": OPEN},
        {"student": STUDENT, "teacher": TEACHER},
        {
            "supervised": Term("labels", "also inside the boxes"),
            "pseudo": Term("predictions", "what the teacher is sure of"),
        },
        (
            "strong > student",
            "x > teacher",
            "student > supervised",
            "student > pseudo",
            "teacher - pseudo",
            "student ~ teacher",
        ),
    ),
    "noisy_student": Figure(
        {"strong": View("box", "strong, spliced"), "x": OPEN},
        {"student": Net("new student"), "teacher": Net("finished teacher", "followed")},
        {
            "supervised": Term("labels", "also inside the boxes"),
            "pseudo": Term("predictions", "labels completed by the teacher"),
        },
        ("strong > student", "x > teacher", "student > supervised", "student > pseudo", "teacher - pseudo"),
    ),
    "add_class": Figure(
        {"strong": View("strong", "intensities changed"), "x": OPEN},
        {"student": Net("student"), "old": Net("old model, fixed", "followed")},
        {
            "supervised": Term("labels", "new classes, and what else is annotated"),
            "distillation": Term("predictions", "the scores of the old model"),
        },
        (
            "strong > student",
            "x > old",
            "student > supervised",
            "student > distillation",
            "old - distillation",
        ),
    ),
    "pipo_fan": Figure(
        {"x": View("pyramid", "all sizes")},
        {"network": NETWORK, "attention": Net("weights of the scales")},
        {
            "supervised": Term("labels", "scales, fused for each case"),
            "deep_supervision": Term("labels", "each scale by itself"),
        },
        ("x > network", "network > attention", "attention > supervised", "network > deep_supervision"),
    ),
    "dodnet": Figure(
        {"x": X},
        {"network": NETWORK, "controller": Net("controller: which one?"), "head": Net("tiny head")},
        {"supervised": Term("labels", "one annotated structure at a time")},
        (
            "x > network",
            "network > controller",
            "controller ~ head",
            "network > head",
            "head > supervised",
        ),
    ),
    "conemos": Figure(
        {"x": X},
        {"network": NETWORK, "names": Net("which one? modulation")},
        {
            "supervised": Term("labels", "one annotated structure at a time"),
            "film_decay": Term("neither", "keeps the modulation small"),
        },
        ("x > network", "names ~ network", "network > supervised", "names > film_decay"),
    ),
    "ltuda_cda": Figure(
        {"strong": View("box", "spliced, twice"), "x": View("plain", "as drawn")},
        {"student": STUDENT, "teacher": TEACHER},
        {
            "supervised": Term("labels", "annotated structures, all views"),
            "pseudo": Term("predictions", "the teacher adds the others"),
        },
        (
            "strong > student",
            "x > student",
            "x > teacher",
            "student > supervised",
            "student > pseudo",
            "teacher - pseudo",
            "student ~ teacher",
        ),
    ),
    "ltuda": Figure(
        {"strong": View("box", "spliced, twice"), "x": View("plain", "as drawn")},
        {
            "labelled": Net("labelled prototypes", "memory"),
            "guessed": Net("pseudo-labelled prototypes", "memory"),
            "student": STUDENT,
            "teacher": TEACHER,
        },
        {
            "labelled_prototype": Term("both", "they classify every voxel"),
            "unlabelled_prototype": Term("both", "these too, and the same"),
            "supervised": Term("labels", "annotated structures"),
            "pseudo": Term("predictions", "the teacher adds the others"),
        },
        (
            "strong > student",
            "x > student",
            "x > teacher",
            "student > guessed",
            "student > labelled",
            "labelled > labelled_prototype",
            "guessed > unlabelled_prototype",
            "student > supervised",
            "student > pseudo",
            "teacher - pseudo",
            "student ~ teacher",
        ),
    ),
    "mean_teacher": Figure(
        {"x": X, "noisy": View("noise", "more noise", of="open")},
        {"student": STUDENT, "teacher": TEACHER},
        {
            "supervised": Term("labels", "what is annotated"),
            "consistency": Term("predictions", "agree with the teacher"),
        },
        CONSISTENCY,
    ),
    "ua_mt": Figure(
        {"x": X, "noisy": View("noise", "noise, 8 times", of="open")},
        {"student": STUDENT, "teacher": TEACHER},
        {
            "supervised": Term("labels", "what is annotated"),
            "consistency": Term("predictions", "where its answers are certain"),
        },
        CONSISTENCY,
    ),
    "bcp_pretraining": Figure(
        {"x": View("box", "box of another scan", of="labelled")},
        {"network": NETWORK},
        {"supervised": Term("labels", "each part by its own label")},
        ("x > network", "network > supervised"),
    ),
    "bcp": Figure(
        {"mixed": View("box", "boxes, both ways"), "x": OPEN},
        {"student": STUDENT, "teacher": TEACHER},
        {
            "supervised": Term("labels", "in the labelled part"),
            "pseudo": Term("predictions", "in the other: the teacher's label"),
        },
        (
            "mixed > student",
            "x > teacher",
            "student > supervised",
            "student > pseudo",
            "teacher - pseudo",
            "student ~ teacher",
        ),
    ),
    "unimatch": Figure(
        {"strong": View("box", "strong, spliced", of="open"), "x": View("plain", "weak view")},
        {"network": NETWORK, "dropped": Net("same, half its features")},
        {
            "strong_views": Term("predictions", "what the weak view is sure of"),
            "supervised": Term("labels", "what is annotated"),
            "feature_dropout": Term("predictions", "the same, with half the features"),
        },
        (
            "strong > network",
            "x > network",
            "x > dropped",
            "network > strong_views",
            "network > supervised",
            "network - feature_dropout",
            "dropped > feature_dropout",
        ),
    ),
    "cps": Figure(
        {"x": X},
        {"first": Net("network 1"), "second": Net("network 2")},
        {
            "supervised": Term("labels", "both networks"),
            "cross_pseudo": Term("predictions", "hard labels of the other"),
        },
        (
            "x > first",
            "x > second",
            "first > supervised",
            "second > supervised",
            "first > cross_pseudo",
            "second > cross_pseudo",
        ),
    ),
    "ucmt": Figure(
        {"x": X, "mixed": View("blocks", "doubt covered")},
        {
            "first": Net("student 1"),
            "second": Net("student 2"),
            "teacher": Net("teacher: their average", "followed"),
        },
        {
            "supervised": Term("labels", "both students, both views"),
            "cross_pseudo": Term("predictions", "hard labels of the other"),
            "teacher_pseudo": Term("predictions", "hard labels of the teacher"),
        },
        (
            "x > first",
            "x > second",
            "mixed > first",
            "mixed > second",
            "x > teacher",
            "first > supervised",
            "second > supervised",
            "first > cross_pseudo",
            "second > cross_pseudo",
            "second > teacher_pseudo",
            "teacher - teacher_pseudo",
            "second ~ teacher",
        ),
    ),
    "sassnet": Figure(
        {"x": X},
        {"network": Net("network: map, distance"), "judge": Net("critic")},
        {
            "supervised": Term("labels", "segmentation and distance map"),
            "adversarial": Term("predictions", "open shapes look annotated"),
            "critic": Term("predictions", "tells the two apart"),
        },
        (
            "x > network",
            "network > judge",
            "network > supervised",
            "network > adversarial",
            "judge - adversarial",
            "judge > critic",
        ),
    ),
    "guidednet": Figure(
        {"x": X},
        {"first": Net("network 1"), "gaussians": Net("Gaussian of each class"), "second": Net("network 2")},
        {
            "supervised": Term("labels", "both networks"),
            "mixture_*": Term("both", "features near their class: five terms"),
            "cross_pseudo": Term("predictions", "labels of the other, weighted"),
        },
        (
            "x > first",
            "x > second",
            "first > supervised",
            "second > supervised",
            "first > gaussians",
            "second > gaussians",
            "gaussians > mixture_*",
            "first > cross_pseudo",
            "second > cross_pseudo",
        ),
    ),
    "mc_net": Figure(
        {"x": X},
        {
            "first": Net("decoder: transposed"),
            "encoder": Net("one encoder"),
            "second": Net("decoder: interpolated"),
        },
        {
            "supervised": Term("labels", "both decoders"),
            "consistency": Term("predictions", "each follows the other, sharpened"),
        },
        (
            "x > encoder",
            "encoder > first",
            "encoder > second",
            "first > supervised",
            "second > supervised",
            "first > consistency",
            "second > consistency",
        ),
    ),
    "mc_net_plus": Figure(
        {"x": X},
        {
            "first": Net("decoder: transposed"),
            "encoder": Net("one encoder"),
            "second": Net("decoder: interpolated"),
            "third": Net("decoder: repeated"),
        },
        {
            "supervised": Term("labels", "all three decoders"),
            "consistency": Term("predictions", "each follows the others, sharpened"),
        },
        (
            "x > encoder",
            "encoder > first",
            "encoder > second",
            "encoder > third",
            "first > supervised",
            "second > supervised",
            "third > supervised",
            "first > consistency",
            "second > consistency",
            "third > consistency",
        ),
    ),
    "caml": Figure(
        {"x": X},
        {
            "first": Net("plain network"),
            "second": Net("attends across the batch"),
            "memory": Net("labelled voxels", "memory"),
        },
        {
            "supervised": Term("labels", "both networks"),
            "consistency": Term("predictions", "same classes, sharpened"),
            "correlation": Term("both", "same likeness to the memory"),
        },
        (
            "x > first",
            "x > second",
            "first > supervised",
            "second > supervised",
            "first > consistency",
            "second > consistency",
            "second > correlation",
            "memory - correlation",
            "first > correlation",
        ),
    ),
    "dkuxnet": Figure(
        {"x": X, "strong": View("strong", "strong view")},
        {"network": Net("UX-Net"), "centres": Net("centres of classes")},
        {
            "supervised": Term("labels", "both views"),
            "query": Term("labels", "centres gather their class"),
            "segmentation_consistency": Term("predictions", "views agree"),
            "query_consistency": Term("predictions", "centres agree"),
        },
        (
            "x > network",
            "strong > network",
            "network > centres",
            "centres > supervised",
            "centres > query",
            "centres > segmentation_consistency",
            "centres > query_consistency",
        ),
    ),
    "arco_pretraining": Figure(
        {"changed": View("strong", "contrast, blur"), "x": X},
        {"student": STUDENT, "teacher": TEACHER, "memory": Net("images seen before", "memory")},
        {
            "supervised": Term("labels", "what is annotated"),
            "image_relation": Term("predictions", "as like the memory as the teacher says"),
            "window_relation": Term("predictions", "the same, window by window"),
        },
        (
            "changed > student",
            "x > teacher",
            "student > supervised",
            "student > image_relation",
            "student > window_relation",
            "teacher - image_relation",
            "teacher - window_relation",
            "memory - image_relation",
            "memory - window_relation",
            "student ~ teacher",
        ),
    ),
    "arco": Figure(
        {"spliced": View("box", "spliced"), "x": OPEN},
        {"student": STUDENT, "teacher": TEACHER, "memory": Net("voxels and maps", "memory")},
        {
            "supervised": Term("labels", "what is annotated"),
            "unsupervised": Term("predictions", "labels of the teacher"),
            "contrast": Term("both", "to its class, from the others"),
            "neighbours": Term("predictions", "to the nearest maps"),
        },
        (
            "spliced > student",
            "x > teacher",
            "student > supervised",
            "student > unsupervised",
            "student > contrast",
            "student > neighbours",
            "teacher - unsupervised",
            "memory - contrast",
            "memory - neighbours",
            "student ~ teacher",
        ),
    ),
    "ss_net": Figure(
        {"x": X, "worst": View("noise", "worst change")},
        {"network": NETWORK, "memory": Net("best voxels", "memory")},
        {
            "smoothness": Term("predictions", "the same answer for both"),
            "supervised": Term("labels", "what is annotated"),
            "separation": Term("both", "voxels resemble their class"),
        },
        (
            "x > network",
            "worst > network",
            "network > smoothness",
            "network > supervised",
            "network > separation",
            "memory - separation",
        ),
    ),
}
