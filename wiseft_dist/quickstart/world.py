"""A small picture world drawn from nothing: twelve object classes in four visual domains.

The outline is what the domains share. In photos the colours and the backdrop usually fit the object, so a model
fine-tuned on photos learns to lean on them; in paintings and cartoons colours fit less often, in sketches there are
none. That is what makes the other domains a distribution shift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from wiseft_dist.quickstart.colours import BACKDROPS, LOOKS, USUAL, Colour, hsv, jittered
from wiseft_dist.quickstart.shapes import OUTLINES, Part, Role, clutter, moved, placed, rotation, warped

Array = NDArray[np.float32]
Ink = Colour | int
Pen = ImageDraw.ImageDraw

CLASSES: tuple[str, ...] = tuple(OUTLINES)
"""The class names; a label is an index into them."""

PHRASES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of a {c}.", "a blurry photo of a {c}.", "a close-up photo of a {c}."),
    "painting": ("a painting of a {c}.", "an oil painting of a {c}.", "a colourful painting of a {c}."),
    "cartoon": ("a cartoon {c}.", "a cartoon drawing of a {c}.", "a comic picture of a {c}."),
    "sketch": ("a pencil sketch of a {c}.", "a black and white drawing of a {c}.", "a sketch of a {c}."),
}
"""What people write under a picture of each domain; ``{c}`` is the place of the class name."""

DOMAINS: tuple[str, ...] = tuple(PHRASES)
"""The visual domains."""

TEMPLATES: tuple[str, ...] = tuple(phrase for phrases in PHRASES.values() for phrase in phrases[:2])
"""The prompts of a zero-shot head: two phrases from each domain."""

_SUPERSAMPLE = 3
_ROLES: tuple[Role, ...] = ("body", "second", "accent", "detail", "clutter")


@dataclass(frozen=True)
class Picture:
    """One picture with what is known about it; ``label`` is the index of ``class_name`` in `CLASSES`."""

    image: Image.Image
    class_name: str
    domain: str
    label: int
    caption: str


def pictures(num: int, *, domain: str, seed: int, size: int = 64) -> Iterator[Picture]:
    """The first ``num`` pictures of an endless fixed sequence.

    Picture ``i`` depends on ``(seed, domain, i)`` alone. Each run of ``len(CLASSES)`` pictures, counted from
    the first, holds every class once, in random order.

    Args:
        num: How many pictures.
        domain: One of `DOMAINS`.
        seed: Non-negative; another seed gives other pictures of the same world.
        size: Width and height in pixels.

    Yields:
        Pictures 0 to ``num - 1``.

    Raises:
        ValueError: If ``domain`` is not one of `DOMAINS`.
    """
    _check(domain, among=DOMAINS, what="domain")
    for index in range(num):
        label = _label(index, domain=domain, seed=seed)
        rng = np.random.default_rng([seed, DOMAINS.index(domain), index])
        name = CLASSES[label]
        image = draw(name, domain, rng=rng, size=size)
        yield Picture(image, name, domain, label, caption(name, domain, rng=rng))


def caption(class_name: str, domain: str, *, rng: np.random.Generator) -> str:
    """A caption that a person might write under the picture, for example ``"a pencil sketch of a cat."``."""
    _check(class_name, among=CLASSES, what="class")
    _check(domain, among=DOMAINS, what="domain")
    return PHRASES[domain][rng.integers(len(PHRASES[domain]))].format(c=class_name)


def draw(class_name: str, domain: str, *, rng: np.random.Generator, size: int = 64) -> Image.Image:
    """Draw one individual of a class in the manner of a domain.

    The same state of ``rng`` gives the same pixels. Returns an RGB picture, ``size`` pixels wide and high.

    Raises:
        ValueError: If the class or the domain does not exist.
    """
    _check(class_name, among=CLASSES, what="class")
    _check(domain, among=DOMAINS, what="domain")
    return _RENDERERS[domain](_scene(class_name, rng=rng, size=size), rng)


@dataclass(frozen=True)
class _Scene:
    """Parts back to front, in the pixels of a canvas ``_SUPERSAMPLE`` times as wide as the picture."""

    class_name: str
    clutter: list[Part]
    parts: list[Part]
    size: int

    @property
    def canvas(self) -> int:
        return self.size * _SUPERSAMPLE


def _check(value: str, *, among: Sequence[str], what: str) -> None:
    if value not in among:
        raise ValueError(f"{value!r} is not a {what} of the picture world; choose one of {', '.join(among)}")


def _label(index: int, *, domain: str, seed: int) -> int:
    block, place = divmod(index, len(CLASSES))
    order = np.random.default_rng([seed, DOMAINS.index(domain), block, 1]).permutation(len(CLASSES))
    return int(order[place])


def _scene(class_name: str, *, rng: np.random.Generator, size: int) -> _Scene:
    canvas = size * _SUPERSAMPLE
    parts = placed(OUTLINES[class_name](rng), rng=rng, canvas=canvas)
    around = clutter(rng, canvas=canvas)
    return _Scene(class_name, around, warped(parts, rng=rng, amplitude=0.008, canvas=canvas), size)


def _photo(scene: _Scene, rng: np.random.Generator) -> Image.Image:
    """A lit, coloured object with a soft shadow before a textured backdrop, a little blurred and noisy."""
    usual = rng.random() < USUAL["photo"]
    look = LOOKS[scene.class_name if usual else CLASSES[rng.integers(len(CLASSES))]]
    backdrop = look[3] if rng.random() < 0.8 else str(rng.choice(list(BACKDROPS)))
    hues = (*look[:3], (44, 42, 42), (128, 122, 112))
    colours = {role: jittered(hue, rng=rng, by=22) for role, hue in zip(_ROLES, hues, strict=True)}
    background = _to_image(_photo_backdrop(backdrop, rng=rng, size=scene.size))
    for part in scene.clutter:
        near = moved(part, turn=np.eye(2), scale=1 / _SUPERSAMPLE, shift=np.zeros(2))
        _fill(ImageDraw.Draw(background), near, jittered(colours["clutter"], rng=rng, by=30))
    layer = _cutout(scene, colours, rng=rng)
    mask = layer.getchannel("A")
    cast = _pixels(mask.filter(ImageFilter.BoxBlur(scene.size / 24)))[..., None] / 255
    cover = _pixels(mask)[..., None] / 255
    shift = rng.integers(scene.size // 32, scene.size // 12, 2)
    shadow = 1 - np.float32(rng.uniform(0.3, 0.6)) * np.roll(cast, shift, axis=(0, 1))
    lit = _pixels(layer)[..., :3] * _light(mask, rng=rng)[..., None]
    picture = _to_image(_pixels(background) * shadow * (1 - cover) + lit * cover)
    blurred = _pixels(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8) * scene.size / 64)))
    noise = rng.standard_normal(blurred.shape, dtype=np.float32)
    return _to_image(blurred * np.float32(rng.uniform(0.8, 1.15)) + noise * np.float32(rng.uniform(2, 8)))


def _cutout(scene: _Scene, colours: Mapping[Role, Colour], *, rng: np.random.Generator) -> Image.Image:
    """The object in flat colours, each part a little off its role's colour, on a clear RGBA picture."""
    image = Image.new("RGBA", (scene.canvas, scene.canvas))
    pen = ImageDraw.Draw(image)
    for part in scene.parts:
        _fill(pen, part, jittered(colours[part.role], rng=rng, by=12))
    return image.reduce(_SUPERSAMPLE)


def _photo_backdrop(kind: str, *, rng: np.random.Generator, size: int) -> Array:
    far, near = (np.array(jittered(hue, rng=rng, by=25), dtype=np.float32) for hue in BACKDROPS[kind])
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    rough = _noise(rng, size=size, cells=(5, 16))
    sharpness = 1.0 if kind in ("sky", "water") else 14.0
    below = (height - rng.uniform(0.35, 0.75)) * sharpness
    depth = np.clip(below + 0.25 + 0.5 * rough, 0, 1)[..., None]
    grain = 0.75 + 0.5 * _noise(rng, size=size, cells=(4, 12, size // 2))[..., None]
    if kind in ("sea", "road", "room"):
        planks = np.sin(height[::-1] ** 0.6 * rng.uniform(30, 60) + 4 * rough)[..., None]
        grain = grain + 0.12 * planks.astype(np.float32) * depth
    colour: Array = (far + (near - far) * depth) * (grain * (0.3 + 0.7 * depth) + 0.7 * (1 - depth))
    return colour


def _light(mask: Image.Image, *, rng: np.random.Generator) -> Array:
    """Brightness factors ``[size, size]`` of a rounded body lit from a random side above."""
    size = mask.width
    relief = _pixels(mask.filter(ImageFilter.GaussianBlur(size / 20))) / 255
    down, right = np.gradient(relief)
    angle = rng.uniform(0.2, 0.8) * np.pi
    slope = (np.cos(angle) * right + np.sin(angle) * down) * size / 20
    texture = _noise(rng, size=size, cells=(6, size // 3)) - 0.5
    return np.asarray(0.7 + 0.4 * relief + 1.2 * slope + 0.3 * texture, dtype=np.float32)


def _painting(scene: _Scene, rng: np.random.Generator) -> Image.Image:
    """Patches of odd colour laid on with a brush along a common flow, over a flat underpainting."""
    hue, turn = rng.uniform(0, 360), rng.uniform(120, 240)
    dim, bright = rng.uniform(70, 95), rng.uniform(20, 45)  # of the ground and of the object
    if rng.random() < 0.25:
        dim, bright = bright, dim
    shades = rng.uniform((-50, 25, dim - 8), (50, 75, dim + 8), (3, 3)).tolist()
    ground = [hsv(hue + apart, saturation, value) for apart, saturation, value in shades]
    values = (bright, bright + rng.uniform(-25, 5), (dim + bright) / 2, dim, rng.uniform(30, 90))
    tints = [hsv(hue + turn + rng.uniform(-70, 70), rng.uniform(30, 85), value) for value in values]
    if rng.random() < USUAL["painting"]:
        tints[:3] = [jittered(hue, rng=rng, by=40) for hue in LOOKS[scene.class_name][:3]]
    colours = dict(zip(_ROLES, tints, strict=True))
    patches = np.array(ground)[(_noise(rng, size=scene.size, cells=(3, 7)) * 2.99).astype(int)]
    image = _to_image(patches).resize((scene.canvas, scene.canvas), Image.Resampling.NEAREST)
    flow = _noise(rng, size=scene.size, cells=(3,)) * 3 + rng.uniform(0, np.pi)
    _brush(image, where=np.ones_like(flow), flow=flow, length=scene.canvas / 7, rng=rng)
    pen = ImageDraw.Draw(image)
    for part in (*scene.clutter, *scene.parts):
        _fill(pen, part, colours[part.role])
    stencil = Image.new("L", image.size)
    for part in scene.parts:
        _fill(ImageDraw.Draw(stencil), part, 255)
    _brush(image, where=_pixels(stencil.reduce(_SUPERSAMPLE)), flow=flow, length=scene.canvas / 16, rng=rng)
    weave = 0.85 + 0.3 * _noise(rng, size=scene.size, cells=(scene.size // 2,))[..., None]
    return _to_image(_pixels(image.reduce(_SUPERSAMPLE)) * weave)


def _brush(image: Image.Image, *, where: Array, flow: Array, length: float, rng: np.random.Generator) -> None:
    """Smear colours of ``image`` along ``flow`` in strokes that start where ``where`` is not 0; in place."""
    inside, num = np.argwhere(where), 64
    spots = inside[rng.integers(len(inside), size=num)]
    row, column = spots.T
    angle = flow[row, column] + rng.normal(0, 0.25, num)
    reach = np.stack([np.cos(angle), np.sin(angle)], axis=1) * length * rng.uniform(0.3, 0.65, (num, 1))
    middle = (spots[:, ::-1] + 0.5) * _SUPERSAMPLE
    ends = np.concatenate([middle - reach, middle + reach], axis=1).tolist()
    tints = np.asarray(image)[row * _SUPERSAMPLE, column * _SUPERSAMPLE] + rng.normal(0, 16, (num, 1))
    tints = (tints + rng.normal(0, 8, (num, 3))).clip(0, 255).astype(int)
    pen, width = ImageDraw.Draw(image), max(1, round(length * 0.32))
    for line, tint in zip(ends, tints.tolist(), strict=True):
        pen.line(line, fill=tuple(tint), width=width)


def _cartoon(scene: _Scene, rng: np.random.Generator) -> Image.Image:
    """Flat saturated colours inside thick dark outlines, on a plain or patterned ground."""
    ground = hsv(rng.uniform(0, 360), rng.uniform(10, 55), rng.uniform(85, 100))
    tints = [hsv(rng.uniform(0, 360), rng.uniform(75, 100), rng.uniform(75, 100)) for _ in _ROLES]
    if rng.random() < USUAL["cartoon"]:
        tints[:3] = [jittered(hue, rng=rng, by=40) for hue in LOOKS[scene.class_name][:3]]
    colours = dict(zip(_ROLES, tints, strict=True))
    colours["accent"] = hsv(rng.uniform(0, 360), rng.uniform(0, 45), 100)
    colours["detail"] = ink = jittered((25, 21, 32), rng=rng, by=10)
    image = Image.new("RGB", (scene.canvas, scene.canvas), ground)
    pen = ImageDraw.Draw(image)
    _pattern(pen, jittered(ground, rng=rng, by=45), rng=rng, canvas=scene.canvas)
    for part in scene.clutter:
        _fill(pen, part, colours["clutter"])
    line = scene.canvas / 64 * rng.uniform(1.3, 2.2)
    for part in scene.parts:
        _contoured(pen, part, colours[part.role], ink, line=line)
    return image.reduce(_SUPERSAMPLE)


def _pattern(pen: Pen, shade: Colour, *, rng: np.random.Generator, canvas: int) -> None:
    """Nothing, dots, stripes or rays."""
    kind, pitch = rng.integers(4), canvas / rng.integers(4, 9)
    if kind == 1:
        for x in np.arange(pitch / 2, canvas, pitch):
            for y in np.arange(pitch / 2, canvas, pitch):
                pen.ellipse((x - pitch / 4, y - pitch / 4, x + pitch / 4, y + pitch / 4), fill=shade)
    elif kind == 2:
        lean = rng.uniform(-canvas, canvas)
        for x in np.arange(-canvas, 2 * canvas, pitch):
            pen.line((x, 0, x + lean, canvas), fill=shade, width=int(pitch / 2.5))
    elif kind == 3:
        for turn in np.radians(np.arange(rng.uniform(0, 30), 360, 30)):
            ray = canvas / 2 + canvas * np.array([[0, 0], [1, 0.13], [1, -0.13]]) @ rotation(turn)
            pen.polygon(ray.ravel().tolist(), fill=shade)


_LIGHT, _DARK, _PAPER = 253, 254, 255
"""Grey levels that mark, while a sketch is drawn, where its hatching goes."""


def _sketch(scene: _Scene, rng: np.random.Generator) -> Image.Image:
    """Wobbly grey strokes and hatching on off-white paper."""
    body, second = rng.choice((_LIGHT, _DARK)), rng.choice((_PAPER, _LIGHT, _DARK))
    tones = dict(zip(_ROLES, (int(body), int(second), _PAPER, _DARK, _PAPER), strict=True))
    image = Image.new("L", (scene.canvas, scene.canvas), _PAPER)
    pen, unit = ImageDraw.Draw(image), scene.canvas / 64
    grey, line = int(rng.integers(20, 90)), unit * rng.uniform(0.9, 1.5)
    for part in scene.clutter:
        _line(pen, part.points, 150, width=unit * 0.6)
    again = warped(scene.parts, rng=rng, amplitude=0.009, canvas=scene.canvas)
    for firm, faint in zip(scene.parts, again, strict=True):
        _contoured(pen, firm, tones[firm.role], grey, line=line)
        if firm.width is None:
            _line(pen, faint.points, grey + 40, width=line * 0.7)
    for tone, pitch in ((_LIGHT, 3.4 * unit), (_DARK, 1.8 * unit)):
        where = image.point([255 * (level == tone) for level in range(256)])
        if where.getbbox():
            image.paste(_hatching(rng, canvas=scene.canvas, pitch=pitch, grey=grey + 40), mask=where)
    shade = _pixels(image.reduce(_SUPERSAMPLE)) / 255 * rng.uniform(232, 252)
    shade += rng.normal(0, 4, shade.shape) + 10 * (_noise(rng, size=scene.size, cells=(4,)) - 0.5)
    return _to_image(shade[..., None] * np.array([1, 0.995, 0.98]))


def _hatching(rng: np.random.Generator, *, canvas: int, pitch: float, grey: int) -> Image.Image:
    image = Image.new("L", (canvas, canvas), 255)
    pen, lean = ImageDraw.Draw(image), rng.uniform(-1.2, 1.2) * canvas
    starts = np.arange(-max(lean, 0), canvas - min(lean, 0), pitch)
    starts += rng.normal(0, pitch / 6, len(starts))
    stops = starts + lean + rng.normal(0, pitch, len(starts))
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        pen.line((start, 0, stop, canvas), fill=grey, width=max(1, round(canvas / 110)))
    return image


_RENDERERS: Mapping[str, Callable[[_Scene, np.random.Generator], Image.Image]] = {
    "photo": _photo,
    "painting": _painting,
    "cartoon": _cartoon,
    "sketch": _sketch,
}


def _contoured(pen: Pen, part: Part, colour: Ink, ink: Ink, *, line: float) -> None:
    """Fill a part and leave ``line`` pixels of ink around it; a thin stroke is ink alone."""
    if part.role == "detail" and part.width is not None:
        _line(pen, part.points, ink, width=max(line, part.width))
    else:
        _line(pen, part.points, ink, width=2 * line + (part.width or 0))
        _fill(pen, part, colour)


def _fill(pen: Pen, part: Part, colour: Ink) -> None:
    if part.width is None:
        pen.polygon(part.points.ravel().tolist(), fill=colour)
    else:
        _line(pen, part.points, colour, width=part.width)


def _line(pen: Pen, points: NDArray[np.float64], ink: Ink, *, width: float) -> None:
    """A line of ``width`` pixels with round ends and round sharp corners."""
    thick, half = max(1, round(width)), width / 2
    pen.line(points.ravel().tolist(), fill=ink, width=thick)
    if thick < 4:
        return
    step = np.diff(points, axis=0)
    heading = np.arctan2(step[:, 1], step[:, 0])
    turn = np.abs((np.diff(heading) + np.pi) % (2 * np.pi) - np.pi)
    for x, y in points[np.concatenate([[True], turn * half > 1, [True]])].tolist():
        pen.ellipse((x - half, y - half, x + half, y + half), fill=ink)


def _noise(rng: np.random.Generator, *, size: int, cells: Sequence[int]) -> Array:
    """A smooth random field ``[size, size]`` in 0..1: a layer for each number of cells, finer ones weaker."""
    field, total = np.zeros((size, size), dtype=np.float32), 0.0
    for octave, count in enumerate(cells):
        grid = Image.fromarray(rng.random((count, count), dtype=np.float32))
        field += np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR)) * 0.6**octave
        total += 0.6**octave
    return field / np.float32(total)


def _pixels(image: Image.Image) -> Array:
    return np.asarray(image, dtype=np.float32)


def _to_image(pixels: NDArray[np.floating] | NDArray[np.integer]) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
