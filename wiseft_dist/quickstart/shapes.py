"""The outlines of the small picture world, one function a class, and their placing on a canvas.

A class function gives the parts of one individual in unit coordinates (x to the right, y downwards, about
-1 to 1). Parts carry no colour but a role, and each visual domain decides how a role looks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Role = Literal["body", "second", "accent", "detail", "clutter"]
Outline = Callable[[np.random.Generator], list["Part"]]


@dataclass(frozen=True)
class Part:
    """A filled polygon, or a stroke where ``width`` is given.

    Attributes:
        role: ``body`` is the largest part, ``second`` the other large one, ``accent`` a light or bright one,
            ``detail`` a small dark one, ``clutter`` does not belong to the object.
        points: Corners in drawing order, shape ``[corners, 2]``, float64.
        width: Thickness of the stroke in the units of ``points``; None for a filled polygon.
    """

    role: Role
    points: Points
    width: float | None = None


def clutter(rng: np.random.Generator, *, canvas: int) -> list[Part]:
    """Up to three small meaningless distractors scattered over a canvas of that many pixels."""
    around = []
    for _ in range(rng.integers(4)):
        turn, scale = rotation(rng.uniform(0, 2 * np.pi)), canvas * rng.uniform(0.03, 0.09)
        around.append(moved(_distractor(rng), turn=turn, scale=scale, shift=rng.uniform(0, canvas, 2)))
    return around


def _distractor(rng: np.random.Generator) -> Part:
    """A blob, a splinter, a bar or a squiggle around the origin."""
    kind = rng.integers(4)
    if kind == 0:
        return _disc("clutter", 0, 0, rng.uniform(0.4, 1), rng.uniform(0.4, 1))
    if kind == 1:
        return Part("clutter", rng.uniform(-1, 1, (3, 2)))
    if kind == 2:
        return _box("clutter", -1, -0.3, 1, 0.3)
    return _stroke("clutter", rng.uniform(0.15, 0.3), (-1, 0), (-0.4, rng.uniform(-1, 1)), (0.3, 0), (1, 0.4))


def _house(rng: np.random.Generator) -> list[Part]:
    half, height, pitch = rng.uniform(0.6, 0.95), rng.uniform(0.65, 1.05), rng.uniform(0.5, 0.9)
    eaves, apex, side = half + rng.uniform(0.06, 0.2), rng.uniform(-0.25, 0.25), rng.choice((-1, 1))
    chimney = side * half * rng.uniform(0.5, 0.7)
    door, door_half, door_top = -side * half * rng.uniform(0.1, 0.5), rng.uniform(0.11, 0.16), height * 0.4
    parts = [
        _box("second", chimney - 0.1, -pitch * rng.uniform(0.85, 1.1), chimney + 0.1, 0),
        _box("body", -half, -0.05, half, height),
        _polygon("second", (-eaves, 0), (apex, -pitch), (eaves, 0)),
        _box("detail", door - door_half, door_top, door + door_half, height),
    ]
    panes = (side * half * 0.55,) if rng.random() < 0.5 else (half * 0.62, -half * 0.66)
    pane = rng.uniform(0.12, 0.17)
    parts += [_box("accent", x - pane, 0.14, x + pane, 0.14 + 2 * pane) for x in panes if abs(x - door) > 0.3]
    if rng.random() < 0.5:
        parts.append(_disc("accent", apex * 0.7, -pitch * 0.36, 0.11))
    return parts


def _tree(rng: np.random.Generator) -> list[Part]:
    trunk, ground = rng.uniform(0.08, 0.16), rng.uniform(0.9, 1.1)
    parts = [_mirrored("second", (trunk, -0.1), (1.5 * trunk, ground))]
    if rng.random() < 0.45:
        tiers, half = int(rng.integers(2, 5)), rng.uniform(0.5, 0.75)
        for tier in range(tiers):
            reach, bottom = half * (1 - 0.7 * tier / tiers), 0.5 - 1.2 * tier / tiers
            parts.append(_mirrored("body", (0, bottom - 1.7 / tiers - 0.15), (reach, bottom)))
        return parts
    lobes, angle = int(rng.integers(5, 9)), np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = 0.85 + rng.uniform(0.1, 0.2) * np.abs(np.sin(angle * lobes / 2 + rng.uniform(0, 3)))
    crown = np.stack([np.cos(angle) * rng.uniform(0.7, 0.9), np.sin(angle) * rng.uniform(0.6, 0.8)], axis=1)
    parts.append(Part("body", crown * radius[:, None] + (0, -0.35)))
    fruits = rng.uniform(-0.4, 0.4, (int(rng.integers(0, 5)), 2))
    return parts + [_disc("accent", x, y - 0.35, 0.09) for x, y in fruits]


def _car(rng: np.random.Generator) -> list[Part]:
    roof, sill, wheel = rng.uniform(-0.55, -0.35), rng.uniform(-0.02, 0.08), rng.uniform(0.19, 0.25)
    rear, front = rng.choice((0.92, 0.72, 0.55)), rng.uniform(0.3, 0.55)
    slope, pillar, floor = rng.uniform(0.15, 0.3), rng.uniform(-0.1, 0.1), 0.36
    cabin = ((-rear, sill), (-rear + slope * 0.6, roof), (front - slope, roof), (front + 0.08, sill))
    hood, bumper = (0.5, sill - 0.05), (0.96, sill + 0.1)
    low, high, back, ahead = sill - 0.05, roof + 0.08, -rear + slope * 0.6 + 0.06, front - slope - 0.03
    left, right = pillar - 0.045, pillar + 0.045
    parts = [
        _polygon("body", *cabin),
        _rounded("body", (-1, sill + 0.04), (-0.9, low), hood, bumper, (1.02, floor), (-1, floor)),
        _polygon("accent", (back - 0.06, low), (back, high), (left, high), (left, low)),
        _polygon("accent", (right, low), (right, high), (ahead, high), (front - 0.03, low)),
    ]
    for x in (-0.58, 0.6):
        parts += [_disc("detail", x, floor, wheel), _disc("accent", x, floor, wheel * 0.45)]
    return parts


def _fish(rng: np.random.Generator) -> list[Part]:
    tall, tail, fork = rng.uniform(0.36, 0.58), rng.uniform(0.32, 0.5), rng.uniform(0.05, 0.25)
    head, back = (0.95, 0.02), ((0.6, -tall * 0.9), (0, -tall * 1.1), (-0.7, -0.12))
    belly, fin = ((-0.7, 0.12), (0, tall), (0.6, tall * 0.8)), rng.uniform(0.2, 0.4)
    parts = [
        _polygon("second", (-0.55, 0), (-1.05, -tail), (-1.05 + fork, 0), (-1.05, tail)),
        _polygon("second", (0.35, -tall * 0.7), (-0.15, -tall * 0.8 - fin), (-0.35, -tall * 0.5)),
        _rounded("body", head, *back, *belly),
        _polygon("second", (0.22, tall * 0.1), (-0.16, tall * 0.1 + fin * 0.7), (-0.14, tall * 0.05)),
        _disc("accent", 0.56, -tall * 0.22, 0.12),
        _disc("detail", 0.59, -tall * 0.22, 0.06),
    ]
    if rng.random() < 0.5:
        parts.append(_stroke("detail", 0.05, (0.34, -tall * 0.6), (0.26, 0), (0.34, tall * 0.5)))
    return parts


def _cat(rng: np.random.Generator) -> list[Part]:
    if rng.random() < 0.5:
        return _cat_head(rng, x=0, y=0, radius=0.85)
    belly, lean, curl = rng.uniform(0.38, 0.5), rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.5)
    body = np.array([(0.24, -0.2), (belly + 0.1, 0.6), (belly, 1)])
    return [
        _curve("body", 0.14, (0.2, 0.9), (0.75, 0.9), (0.95, 0.6), (0.8, curl), (0.95, curl - 0.25)),
        _mirrored("body", *body.tolist(), rounded=True),
        _disc("accent", lean * 0.5, 0.4, belly * 0.45, 0.3),
        _stroke("detail", 0.05, (0, 0.98), (0, 0.72)),
        *_cat_head(rng, x=lean, y=-0.45, radius=0.48),
    ]


def _cat_head(rng: np.random.Generator, *, x: float, y: float, radius: float) -> list[Part]:
    wide, ear, tip = rng.uniform(1, 1.15), rng.uniform(1.05, 1.35), rng.uniform(0.75, 0.95)
    eye = rng.uniform(0.12, 0.18)
    parts = []
    for side in (-1, 1):
        parts.append(_polygon("body", (side * wide, -0.15), (side * tip, -ear), (side * 0.15, -0.7)))
        inner = ((side * 0.82, -0.45), (side * tip * 0.94, -ear + 0.2), (side * 0.42, -0.7))
        parts.append(_polygon("accent", *inner))
    parts.append(_disc("body", 0, 0, wide, 0.85))
    for side in (-1, 1):
        parts.append(_disc("accent", side * 0.42, -0.1, eye * 1.3, eye * 1.2))
        parts.append(_disc("detail", side * 0.42, -0.1, eye * 0.7, eye))
        for start, stop in ((0.3, 0.14), (0.36, 0.4)):
            parts.append(_stroke("detail", 0.035, (side * 0.4, start), (side * 1.3, stop)))
        parts.append(_stroke("detail", 0.05, (0, 0.3), (side * 0.08, 0.45), (side * 0.25, 0.46)))
    parts.append(_polygon("detail", (-0.13, 0.18), (0.13, 0.18), (0, 0.34)))
    return [moved(part, turn=np.eye(2), scale=radius, shift=np.array([x, y])) for part in parts]


def _sailboat(rng: np.random.Generator) -> list[Part]:
    deck, keel, top = rng.uniform(0.4, 0.5), rng.uniform(0.8, 0.95), rng.uniform(-1.1, -0.9)
    mast, stern = rng.uniform(-0.15, 0.15), rng.uniform(0.75, 0.95)
    boom = deck - rng.uniform(0.1, 0.18)
    parts = [
        _stroke("detail", 0.07, (mast, deck + 0.05), (mast, top)),
        _polygon("accent", (mast + 0.08, top + 0.08), (mast + 0.08, boom), (rng.uniform(0.65, 0.85), boom)),
        _polygon("body", (-stern, deck), (1, deck), (0.62, keel), (-stern * 0.75, keel)),
    ]
    if rng.random() < 0.65:
        jib, foot = top + rng.uniform(0.15, 0.5), -rng.uniform(0.55, 0.8)
        parts.append(_polygon("second", (mast - 0.08, jib), (mast - 0.08, boom), (foot, boom)))
    if rng.random() < 0.4:
        parts.append(_polygon("second", (mast, top - 0.16), (mast - 0.3, top - 0.06), (mast, top + 0.04)))
    if rng.random() < 0.5:
        parts.append(_stroke("accent", 0.07, (-stern + 0.1, deck + 0.13), (0.85, deck + 0.13)))
    return parts


def _flower(rng: np.random.Generator) -> list[Part]:
    num_petals, bend, start = int(rng.integers(5, 9)), rng.uniform(-0.2, 0.2), rng.uniform(0, 2 * np.pi)
    heart, long = rng.uniform(0.17, 0.26), rng.uniform(0.26, 0.34)
    wide = rng.uniform(0.75, 1.0) * np.pi / num_petals * 0.5
    parts = [_stroke("second", 0.09, (0, -0.4), (bend, 0.3), (bend * 0.5, 1.05))]
    for side in (-1, 1)[: int(rng.integers(1, 3))]:
        low, reach = rng.uniform(0.5, 0.85), side * rng.uniform(0.4, 0.6)
        root, tip = (bend * 0.7, low), (bend + reach, low - 0.35)
        over, under = (bend + reach * 0.3, low - 0.35), (bend + reach * 0.7, low + 0.02)
        parts.append(_rounded("second", root, over, tip, under))
    for turn in start + np.arange(num_petals) * 2 * np.pi / num_petals:
        petal = _disc("body", heart + long * 0.75, 0, long, wide).points
        parts.append(Part("body", petal @ rotation(turn) + (0, -0.42)))
    return [*parts, _disc("accent", 0, -0.42, heart)]


def _mug(rng: np.random.Generator) -> list[Part]:
    half, top, taper = rng.uniform(0.45, 0.62), rng.uniform(-0.6, -0.4), rng.uniform(0.8, 1.05)
    rim, reach, band = rng.uniform(0.08, 0.16), rng.uniform(0.35, 0.5), rng.uniform(0.05, 0.3)
    low, far = half * taper, half + reach
    parts = [
        _curve("body", rng.uniform(0.12, 0.17), (half * 0.9, -0.25), (far, -0.3), (far, 0.45), (low * 0.9, 0.4)),
        _mirrored("body", (half, top), (low, 0.68), (low * 0.85, 0.78)),
        _disc("second", 0, top, half, rim),
    ]
    if rng.random() < 0.5:
        parts.append(_box("accent", -low, band, low, band + 0.2))
    for x in rng.uniform(-0.1, 0.1) + np.array([-0.22, 0.22])[: int(rng.integers(0, 3))]:
        steam = ((x, top - 0.2), (x + 0.12, top - 0.35), (x - 0.12, top - 0.5), (x + 0.05, top - 0.65))
        parts.append(_curve("accent", 0.06, *steam))
    return parts


def _lamp(rng: np.random.Generator) -> list[Part]:
    upper, lower, top = rng.uniform(0.25, 0.45), rng.uniform(0.6, 0.85), rng.uniform(-1, -0.85)
    bottom, foot, stand = rng.uniform(-0.15, 0.05), rng.uniform(0.35, 0.55), rng.uniform(0.85, 1)
    if rng.random() < 0.4:
        belly = rng.uniform(0.28, 0.4)
        column = _mirrored("second", (0.1, bottom), (belly, 0.5), (0.2, stand), rounded=True)
    else:
        column = _stroke("second", rng.uniform(0.09, 0.14), (0, bottom), (0, stand))
    parts = [
        column,
        _mirrored("second", (foot * 0.7, stand - 0.08), (foot, stand + 0.1), rounded=True),
        _stroke("detail", 0.045, (lower * 0.6, bottom - 0.05), (lower * 0.6, bottom + rng.uniform(0.2, 0.4))),
        _mirrored("body", (upper, top), (lower, bottom)),
    ]
    if rng.random() < 0.5:
        parts.append(_stroke("accent", 0.07, (-lower + 0.08, bottom - 0.13), (lower - 0.08, bottom - 0.13)))
    return parts


def _mushroom(rng: np.random.Generator) -> list[Part]:
    wide, tall, brim = rng.uniform(0.75, 1), rng.uniform(0.65, 1), rng.uniform(0, 0.12)
    stem, foot = rng.uniform(0.18, 0.28), rng.uniform(0.24, 0.38)
    angle = np.linspace(-np.pi / 2, 0, 8)
    dome = np.stack([wide * np.cos(angle), tall * np.sin(angle)], axis=1)
    parts = [
        _mirrored("second", (stem, -0.2), (stem, 0.4), (foot, 0.85), rounded=True),
        _mirrored("body", *dome.tolist(), (wide * 0.8, 0.08 + brim)),
    ]
    spots = [(-0.5, -0.22), (0.05, -0.55), (0.48, -0.25), (-0.1, -0.14)][: int(rng.integers(0, 5))]
    parts += [_disc("accent", x * wide, y * tall, rng.uniform(0.08, 0.15)) for x, y in spots]
    if rng.random() < 0.5:
        parts.append(_mirrored("second", (0, 0.2), (stem + 0.08, 0.3), (stem, 0.42), rounded=True))
    return parts


def _key(rng: np.random.Generator) -> list[Part]:
    bow, thick, end = rng.uniform(0.28, 0.38), rng.uniform(0.13, 0.18), rng.uniform(0.85, 1.05)
    ring = _disc("body", -0.62, 0, bow, bow * rng.uniform(0.85, 1.2)).points
    if rng.random() < 0.3:
        ring = np.array([(-0.62 - bow, 0), (-0.62, -bow), (-0.62 + bow, 0), (-0.62, bow)])
    num_teeth, bit = int(rng.integers(2, 4)), thick * 0.95
    parts = [
        _stroke("body", thick, (-0.62 + bow, 0), (end, 0)),
        Part("body", np.concatenate([ring, ring[:2]]), width=thick),
    ]
    for tooth in range(num_teeth):
        x, depth = end - thick * 0.5 - tooth * bit * 1.7, rng.uniform(0.24, 0.4)
        parts.append(_box("body", x - bit / 2, thick * 0.3, x + bit / 2, thick * 0.5 + depth))
    collar = -0.62 + bow + thick * 0.9
    return [*parts, _box("second", collar - 0.05, -thick * 0.85, collar + 0.05, thick * 0.85)]


def _rocket(rng: np.random.Generator) -> list[Part]:
    half, tip, tail = rng.uniform(0.26, 0.38), rng.uniform(-1.05, -0.85), rng.uniform(0.5, 0.65)
    spread, nose = half + rng.uniform(0.22, 0.38), rng.uniform(-0.55, -0.4)
    flame, hull = rng.uniform(0.25, 0.45), half * 0.72
    fin = np.array([(half * 0.8, 0.1), (spread, tail - 0.05), (spread, tail + 0.2), (hull * 0.8, tail - 0.05)])
    parts = [
        _mirrored("accent", (hull * 0.7, tail), (0, tail + flame)),
        Part("second", fin),
        Part("second", fin * (-1, 1)),
        _mirrored("body", (0, tip), (half * 0.7, nose), (half, -0.1), (half * 0.97, 0.2), (hull, tail)),
        _mirrored("second", (0, tip - 0.06), (half * 0.62, nose + 0.02)),
        _disc("detail", 0, -0.12, half * 0.58),
        _disc("accent", 0, -0.12, half * 0.38),
    ]
    if rng.random() < 0.4:
        parts.append(_stroke("second", 0.07, (-half * 0.85, 0.32), (half * 0.85, 0.32)))
    return parts


_DRAWN = (_house, _tree, _car, _fish, _cat, _sailboat, _flower, _mug, _lamp, _mushroom, _key, _rocket)

OUTLINES: dict[str, Outline] = {outline.__name__.removeprefix("_"): outline for outline in _DRAWN}
"""The outline of each class: a generator in, the parts of one individual out, back to front."""


def placed(parts: list[Part], *, rng: np.random.Generator, canvas: int) -> list[Part]:
    """The parts turned, perhaps mirrored, and scaled to fill 70 to 95 % of the canvas at a random place."""
    tilt = np.radians(np.clip(rng.normal(0, 5), -12, 12))
    turn = np.diag([rng.choice((-1.0, 1.0)), 1.0]) @ rotation(tilt)
    turned = np.concatenate([part.points for part in parts]) @ turn
    low, high = turned.min(axis=0), turned.max(axis=0)
    scale = canvas * rng.uniform(0.7, 0.95) / (high - low).max()
    slack = (canvas * 0.96 - (high - low) * scale) / 2
    centre = canvas / 2 + rng.uniform(-1, 1, 2) * np.minimum(slack, canvas * 0.2)
    there = [moved(part, turn=turn, scale=scale, shift=centre - (low + high) / 2 * scale) for part in parts]
    return [replace(p, points=_dense(p.points, step=canvas / 24, closed=p.width is None)) for p in there]


def moved(part: Part, *, turn: Points, scale: float, shift: Points) -> Part:
    """The part turned by a matrix ``[2, 2]``, scaled, then shifted."""
    return Part(part.role, part.points @ turn * scale + shift, part.width and part.width * scale)


def warped(parts: list[Part], *, rng: np.random.Generator, amplitude: float, canvas: int) -> list[Part]:
    """The parts in an unsteady hand: all points follow one smooth displacement of ``amplitude * canvas``."""
    waves = rng.uniform(-1, 1, (2, 6)) * np.tile((8, 20, 45), 2) / canvas
    points = np.concatenate([part.points for part in parts])
    swing = np.sin(points @ waves + rng.uniform(0, 2 * np.pi, 6)) * np.tile((1.2, 0.8, 0.5), 2)
    points = points + amplitude * canvas * swing.reshape(-1, 2, 3).sum(axis=2)
    ends = np.cumsum([len(part.points) for part in parts])[:-1]
    return [replace(part, points=bent) for part, bent in zip(parts, np.split(points, ends), strict=True)]


def rotation(radians: float) -> Points:
    """The matrix ``[2, 2]`` that turns rows of points when it stands at their right."""
    cos, sin = np.cos(radians), np.sin(radians)
    return np.array([[cos, sin], [-sin, cos]])


def _dense(points: Points, *, step: float, closed: bool) -> Points:
    """The same line with points at most ``step`` pixels apart; the corners stay."""
    corners = np.concatenate([points, points[:1]]) if closed else points
    along = np.concatenate([[0.0], np.hypot(*np.diff(corners, axis=0).T).cumsum()])
    at = np.sort(np.concatenate([along, np.arange(step / 2, along[-1], step)]))
    return np.stack([np.interp(at, along, corners[:, axis]) for axis in (0, 1)], axis=1)


def _polygon(role: Role, *corners: tuple[float, float]) -> Part:
    return Part(role, np.array(corners, dtype=np.float64))


def _rounded(role: Role, *corners: tuple[float, float]) -> Part:
    return Part(role, _cut_corners(np.array(corners, dtype=np.float64), closed=True))


def _stroke(role: Role, width: float, *corners: tuple[float, float]) -> Part:
    return Part(role, np.array(corners, dtype=np.float64), width=width)


def _box(role: Role, left: float, top: float, right: float, bottom: float) -> Part:
    return _polygon(role, (left, top), (right, top), (right, bottom), (left, bottom))


def _mirrored(role: Role, *right: tuple[float, float], rounded: bool = False) -> Part:
    """The shape whose right half, from top to bottom, is given."""
    half = np.array(right, dtype=np.float64)
    points = np.concatenate([half, half[::-1] * (-1, 1)])
    return Part(role, _cut_corners(points, closed=True) if rounded else points)


def _curve(role: Role, width: float, *corners: tuple[float, float]) -> Part:
    return Part(role, _cut_corners(np.array(corners, dtype=np.float64), closed=False), width=width)


def _disc(role: Role, x: float, y: float, radius: float, tall: float | None = None) -> Part:
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    height = radius if tall is None else tall
    return Part(role, np.stack([x + radius * np.cos(angle), y + height * np.sin(angle)], axis=1))


def _cut_corners(points: Points, *, closed: bool) -> Points:
    """Chaikin's corner cutting, twice: a smooth curve near the polygon; an open one keeps its ends."""
    for _ in range(2):
        ahead = np.roll(points, -1, axis=0) if closed else points[1:]
        behind = points if closed else points[:-1]
        cut = np.stack([0.75 * behind + 0.25 * ahead, 0.25 * behind + 0.75 * ahead], axis=1).reshape(-1, 2)
        points = cut if closed else np.concatenate([points[:1], cut[1:-1], points[-1:]])
    return points
