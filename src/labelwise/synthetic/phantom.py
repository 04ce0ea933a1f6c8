"""A painted abdomen: simple bodies in the coordinates of an average patient, and the HU of their tissues.

Ellipsoids and tubes are painted into a tissue map at atlas positions: RAS+ in mm, the origin in front of the
first lumbar vertebra, so that the liver lies at x > 0. A body is painted only over the tissues it may replace
(most structures: over the fat of the cavity), so earlier bodies indent later ones. Every structure is moved, turned and
scaled by itself. Positions, sizes and HU are rounded textbook values of an adult; the pancreas is a little
larger, so that it survives voxels of 5 mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from labelwise.types import BACKGROUND, Array, LabelSpace

LABEL_SPACE = LabelSpace((BACKGROUND, "liver", "spleen", "kidneys", "pancreas"))

Floats = NDArray[np.floating]
Position = Sequence[float] | Floats  # x, y, z in mm


class Tissue(NamedTuple):
    """Intensity of a tissue: HU in the arterial, portal-venous and late phase, and how it varies."""

    hu: tuple[float, float, float]
    between_patients: float  # standard deviation of the patient's mean, HU
    texture: float  # standard deviation within the tissue, HU
    structure: str = BACKGROUND


TISSUES: Mapping[str, Tissue] = {
    "air": Tissue((-1000, -1000, -1000), 0, 0),
    "skin": Tissue((20, 25, 25), 10, 0),
    "fat": Tissue((-105, -105, -105), 5, 8),
    "cavity": Tissue((-102, -100, -100), 6, 16),  # fat between the structures
    "muscle": Tissue((60, 66, 66), 6, 10),
    "marrow": Tissue((190, 200, 200), 35, 40),
    "bone": Tissue((520, 520, 520), 60, 90),
    "disc": Tissue((85, 85, 85), 10, 8),
    "lung": Tissue((-830, -830, -830), 25, 40),
    "couch": Tissue((100, 100, 100), 50, 0),
    "artery": Tissue((310, 165, 125), 18, 3),
    "vein": Tissue((90, 160, 125), 14, 4),
    "liver": Tissue((74, 106, 92), 9, 5, "liver"),
    "liver vessel": Tissue((85, 150, 115), 10, 4, "liver"),
    "liver lesion": Tissue((45, 55, 60), 22, 6, "liver"),
    "spleen": Tissue((140, 128, 108), 8, 4, "spleen"),
    "kidney cortex": Tissue((210, 188, 158), 14, 8, "kidneys"),
    "kidney medulla": Tissue((115, 172, 165), 14, 8, "kidneys"),
    "pancreas": Tissue((112, 92, 76), 8, 8, "pancreas"),
    "stomach": Tissue((30, 34, 34), 22, 14),
    "bowel": Tissue((66, 64, 58), 14, 20),
    "colon": Tissue((5, 10, 10), 30, 130),
    "gas": Tissue((-900, -900, -900), 0, 20),
    "bile": Tissue((8, 8, 10), 7, 3),
}
TISSUE_INDEX = {name: index for index, name in enumerate(TISSUES)}
CLASS_OF_TISSUE = np.array([LABEL_SPACE.index(tissue.structure) for tissue in TISSUES.values()], np.uint8)


@dataclass(frozen=True)
class Pose:
    """How the bodies of a structure are moved together: scaled and turned about a pivot, then shifted."""

    pivot: Floats
    shift: Floats
    turn: Floats  # (3, 3) rotation times scale

    def __call__(self, points: Floats) -> Floats:
        """(..., 3) positions of the average patient -> (..., 3) positions of this patient."""
        return (points - self.pivot) @ self.turn.T + self.pivot + self.shift

    @property
    def scale(self) -> float:
        """Factor by which lengths grow."""
        return float(np.cbrt(np.linalg.det(self.turn)))


REST = Pose(np.zeros(3), np.zeros(3), np.eye(3))


class Painter:
    """Paints tissues at atlas positions.

    Shapes
        atlas     (3, X, Y, Z)  float32, atlas position of every voxel in mm
        tissue    (X, Y, Z)     uint8, index into `TISSUES`
    """

    def __init__(self, atlas: Floats, random: np.random.Generator, variation: float):
        self.atlas, self.random, self.variation = atlas, random, variation
        self.tissue = np.zeros(atlas.shape[1:], np.uint8)
        # Extremes of each coordinate within each slab of voxels: bodies are small, and most slabs miss them.
        others = [(1, 2), (0, 2), (0, 1)]
        self._lowest = [positions.min(axis) for positions, axis in zip(atlas, others, strict=True)]
        self._highest = [positions.max(axis) for positions, axis in zip(atlas, others, strict=True)]

    def pose(
        self, pivot: Position, shift_mm: float = 6.0, turn_deg: float = 8.0, scale: float = 0.10
    ) -> Pose:
        """A random pose; the arguments are standard deviations (`scale`: of its logarithm)."""
        turn = Rotation.from_rotvec(self.vary(turn_deg, 3), degrees=True).as_matrix()
        return Pose(np.array(pivot), self.vary(shift_mm, 3), turn * np.exp(self.vary(scale)))

    def vary(self, deviation: float, *size: int) -> Floats:
        """Normal deviates around 0, scaled by the variation between patients."""
        return np.asarray(deviation * self.variation * self.random.standard_normal(size))

    def fill(self, mask: Array, tissue: str, over: Sequence[str] = tuple(TISSUES)) -> None:
        """Paint wherever `mask` is true and one of the tissues `over` lies."""
        self._replace((slice(None),) * 3, mask, tissue, over)

    def ellipsoid(
        self,
        tissue: str,
        centre: Position,
        radii: Position,
        *,
        pose: Pose = REST,
        tilt: Position = (0, 0, 0),
        over: Sequence[str] = ("cavity",),
    ) -> None:
        """Paint an ellipsoid, turned by the Euler angles `tilt` (degrees, about x, y, z)."""
        axes = pose.turn @ Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() * np.array(radii)
        middle = pose(np.array(centre))
        box = self._box(middle, np.linalg.norm(axes, axis=1))
        offset = self.atlas[:, *box] - middle.astype(np.float32)[:, None, None, None]
        local = np.tensordot(np.linalg.inv(axes).astype(np.float32), offset, axes=1)
        self._replace(box, np.einsum("cxyz,cxyz->xyz", local, local) < 1, tissue, over)

    def tube(
        self,
        tissue: str,
        points: Sequence[Position] | Floats,
        radii: Position,
        *,
        pose: Pose = REST,
        over: Sequence[str] = ("cavity",),
    ) -> None:
        """Paint a tube along a smooth curve through `points`, with a radius at each of them."""
        knots = np.column_stack([pose(np.array(points)), np.array(radii) * pose.scale])
        steps = np.linalg.norm(np.diff(knots[:, :3], axis=0), axis=1)
        along = np.concatenate([[0], np.cumsum(steps)])
        fine = np.linspace(0, along[-1], 2 + int(2.5 * along[-1] / min(knots[:, 3])))
        curve = make_interp_spline(along, knots, k=min(3, len(knots) - 1))(fine).astype(np.float32)
        middle = (curve[:, :3].min(0) + curve[:, :3].max(0)) / 2
        box = self._box(middle, np.ptp(curve[:, :3], axis=0) / 2 + curve[:, 3].max())
        near = np.full(self.tissue[box].shape, np.inf, np.float32)
        for *centre, radius in curve:
            offset = self.atlas[:, *box] - np.array(centre, np.float32)[:, None, None, None]
            np.minimum(near, np.einsum("cxyz,cxyz->xyz", offset, offset) / radius**2, out=near)
        self._replace(box, near < 1, tissue, over)

    def _box(self, middle: Floats, reach: Floats) -> tuple[slice, slice, slice]:
        slabs = []
        for axis in range(3):
            hit = (self._highest[axis] > middle[axis] - reach[axis]) & (
                self._lowest[axis] < middle[axis] + reach[axis]
            )
            found = np.flatnonzero(hit)
            slabs.append(slice(found[0], found[-1] + 1) if len(found) else slice(0, 0))
        return slabs[0], slabs[1], slabs[2]

    def _replace(self, box: tuple[slice, ...], mask: Array, tissue: str, over: Sequence[str]) -> None:
        replaceable = np.zeros(len(TISSUES), bool)
        replaceable[[TISSUE_INDEX[name] for name in over]] = True
        region = self.tissue[box]
        region[mask & replaceable[region]] = TISSUE_INDEX[tissue]


def paint_patient(painter: Painter, subcutaneous_mm: float) -> None:
    """Paint a whole abdomen, from the diaphragm to the iliac crests, under so much subcutaneous fat."""
    _paint_trunk(painter, subcutaneous_mm)
    _paint_chest(painter)
    _paint_muscles(painter)
    _paint_bones(painter)
    _paint_vessels(painter)
    for side, height in ((1, -14), (-1, -4)):
        _paint_kidney(painter, side, height)
    _paint_spleen(painter)
    _paint_pancreas(painter)
    _paint_liver(painter)
    _paint_stomach(painter)
    _paint_colon(painter)
    _paint_small_bowel(painter)


def _paint_trunk(painter: Painter, subcutaneous_mm: float) -> None:
    x, y, _ = painter.atlas
    back = 96 + 0.7 * subcutaneous_mm
    painter.fill(np.abs(np.hypot(x, y - 420 + back + 12) - 420) < 4, "couch")
    rings = [
        ("skin", 135 + subcutaneous_mm, back),
        ("fat", 132 + subcutaneous_mm, back - 3),
        ("muscle", 135, 96),
        ("cavity", 122, 84),
    ]
    for tissue, width, depth in rings:
        painter.fill(np.abs(x / width) ** 2.4 + np.abs(y / depth) ** 2.4 < 1, tissue)


def _paint_chest(painter: Painter) -> None:
    x, y, z = painter.atlas
    for side, top in ((1, 100 + painter.vary(8)), (-1, 92 + painter.vary(8))):
        above = z > top - 30 * ((x - side * 62) / 62) ** 2 - 18 * (y / 70) ** 2  # the dome of the diaphragm
        painter.fill(above & (side * x > 8), "lung", over=("cavity",))
        painter.fill(above & (np.abs(x) <= 8), "fat", over=("cavity",))
    heart = (-22, 25, 130)
    pose = painter.pose(heart)
    painter.ellipsoid("vein", heart, (58, 48, 38), pose=pose, over=("cavity", "lung", "fat"))
    painter.ellipsoid("artery", (-38, 12, 132), (26, 26, 24), pose=pose, over=("vein",))


def _paint_muscles(painter: Painter) -> None:
    soft = ("cavity", "muscle", "lung")
    for side in (-1, 1):
        painter.ellipsoid("muscle", (side * 34, -80, 0), (28, 20, 400), over=soft)
        painter.ellipsoid("muscle", (side * 40, -46, -75), (19, 19, 75), tilt=(0, side * 6, 0), over=soft)


def _paint_bones(painter: Painter) -> None:
    x, y, z = painter.atlas
    for side in (-1, 1):  # iliac crests
        crest = (side * 100, -30, -150)
        painter.ellipsoid(
            "bone", crest, (9, 48, 50), tilt=(0, side * 25, 0), over=("cavity", "muscle", "fat")
        )
    disc = np.mod(z / 33 + painter.random.random(), 1) < 0.24
    vertebra = (x / 22) ** 2 + ((y + 46) / 17) ** 2
    painter.fill(vertebra < 1, "bone")
    painter.fill(vertebra < 0.72, "marrow")
    painter.fill((vertebra < 1) & disc, "disc")
    lamina = (np.abs(x) + 0.5 * np.abs(y + 68) < 17) & (np.abs(y + 70) < 12)
    spinous_process = (np.abs(x) < 4) & (np.abs(y + 86) < 10)
    painter.fill((lamina | spinous_process) & ~disc, "bone")
    painter.fill(np.hypot(x, y + 68) < 8, "disc")  # the canal
    # Ribs run down and forward within the wall of the trunk, and end at the costal arch.
    wall = np.abs(x / 129) ** 2.4 + np.abs(y / 90.5) ** 2.4
    rib = (np.mod((z + 0.45 * (y + 84)) / 30, 1) < 0.36) & (np.abs(wall - 1) < 0.075) & (np.abs(x) > 22)
    painter.fill(rib & (z - 0.35 * (y + 84) > -20), "bone", over=("muscle", "cavity"))


def _paint_vessels(painter: Painter) -> None:
    pose = painter.pose((0, -18, 0), shift_mm=3, turn_deg=3)
    painter.tube("artery", [(-8, -20, 150), (-10, -19, 0), (-6, -20, -150)], (11, 9, 8), pose=pose)
    painter.tube("vein", [(22, -2, 130), (20, -16, 40), (17, -20, -150)], (13, 12, 10), pose=pose)
    portal = [(42, 10, 42), (18, 5, 18), (-30, -1, 28), (-70, -20, 42)]
    painter.tube("vein", portal, (7, 6, 4.5, 4), pose=painter.pose((0, 5, 25), shift_mm=4))


def _paint_kidney(painter: Painter, side: int, height: float) -> None:
    centre, tilt = (side * 60, -47, height), (0, -side * 9, 0)
    pose = painter.pose(centre, shift_mm=8, turn_deg=9, scale=0.11)
    missing, with_cyst = painter.random.random(2) < np.array((0.035, 0.2)) * painter.variation
    cyst = (side * 76, -37, height + float(painter.vary(25)))
    if missing:
        return
    painter.ellipsoid("fat", centre, (32, 30, 57), pose=pose, tilt=tilt)
    painter.ellipsoid("kidney cortex", centre, (27, 25, 52), pose=pose, tilt=tilt, over=("fat", "cavity"))
    painter.ellipsoid("kidney medulla", centre, (17, 15, 39), pose=pose, tilt=tilt, over=("kidney cortex",))
    hilum = (side * 43, -41, height)
    painter.ellipsoid("fat", hilum, (17, 9, 20), pose=pose, over=("kidney cortex", "kidney medulla"))
    if with_cyst:
        painter.ellipsoid("bile", cyst, (11, 11, 11), pose=pose, over=("kidney cortex", "fat", "cavity"))


def _paint_spleen(painter: Painter) -> None:
    centre = (-92, -34, 48)
    pose = painter.pose(centre, shift_mm=9, turn_deg=12, scale=0.16)
    painter.ellipsoid("spleen", centre, (27, 42, 46), pose=pose, tilt=(25, 12, 12))
    painter.ellipsoid("cavity", (-58, -14, 56), (26, 34, 44), pose=pose, over=("spleen",))


def _paint_pancreas(painter: Painter) -> None:
    pose = painter.pose((-5, 15, 10), shift_mm=8, turn_deg=10, scale=0.12)
    course = np.array(
        [(36, 8, -22), (34, 16, -4), (10, 27, 8), (-20, 21, 18), (-48, 2, 28), (-74, -16, 38)], np.float64
    )
    course += painter.vary(5, *course.shape)
    radii = (16, 20, 15, 15.5, 16, 12) * np.exp(painter.vary(0.14, 6))
    painter.tube("pancreas", course, radii, pose=pose)
    duodenum = np.array([(40, 30, 12), (0, 0, 0), (0, 0, 0), (10, -4, -48), (-24, 6, -40)], np.float64)
    duodenum[1:3] = course[[1, 0]] + [(22, 2, 4), (14, -2, -18)]  # around the head of the pancreas
    painter.tube("bowel", duodenum, (12, 12, 12, 11, 11), pose=pose)


def _paint_liver(painter: Painter) -> None:
    gallbladder = (58, 42, 4)
    painter.ellipsoid("bile", gallbladder, (13, 17, 27), pose=painter.pose(gallbladder, scale=0.2))
    pose = painter.pose((60, 0, 45), shift_mm=8, turn_deg=7)
    painter.ellipsoid("liver", (76, -2, 38), (56, 72, 72), pose=pose, tilt=(0, 12, 0))
    left_lobe = (62, 32, 36) * np.exp(painter.vary(0.16, 3))
    painter.ellipsoid("liver", (14, 40, 58), left_lobe, pose=pose, tilt=(0, -14, 0))
    for _ in range(4):
        root, end = np.add((38, 12, 45), painter.vary(4, 3)), painter.random.normal((85, 0, 50), 30)
        middle = (root + end) / 2 + painter.vary(5, 3)
        painter.tube("liver vessel", [root, middle, end], (6, 4.5, 3), pose=pose, over=("liver",))
    for _ in range(painter.random.poisson(0.7 * painter.variation)):
        centre, radius = painter.random.normal((75, 0, 45), 28), painter.random.uniform(6, 16)
        painter.ellipsoid("liver lesion", centre, [radius] * 3, pose=pose, over=("liver", "liver vessel"))


def _paint_stomach(painter: Painter) -> None:
    pose = painter.pose((-40, 25, 55), shift_mm=8, turn_deg=9, scale=0.14)
    course = [(-52, 2, 84), (-56, 20, 58), (-36, 44, 26), (4, 50, 10), (32, 40, 14)]
    painter.tube("stomach", course, (34, 36, 26, 19, 13), pose=pose)
    if painter.random.random() < 0.6:
        painter.ellipsoid("gas", (-46, 52, 52), (30, 16, 36), pose=pose, over=("stomach",))


def _paint_colon(painter: Painter) -> None:
    pose = painter.pose((0, 30, -40), shift_mm=9, turn_deg=5)
    right = [(88, -8, -140), (92, -8, -70), (88, 12, -28)]
    left = [(-88, 14, 6), (-100, -16, -50), (-94, -14, -140)]
    course = np.array([*right, (40, 60, -34), (-30, 60, -30), *left], np.float64)
    course += painter.vary(8, *course.shape)
    painter.tube("colon", course, 20 * np.exp(painter.vary(0.15, len(course))), pose=pose)
    painter.tube("gas", np.add(course[3:6], (0, 10, 0)), (9, 11, 9), pose=pose, over=("colon",))


def _paint_small_bowel(painter: Painter) -> None:
    for _ in range(7):
        start = painter.random.normal((0, 22, -72), (42, 24, 30))
        loop = start + np.cumsum(painter.random.normal(0, (22, 15, 18), (5, 3)), axis=0)
        painter.tube("bowel", loop, painter.random.uniform(10, 15, 5))
