"""Synthetic pictures, each from a seed: scenes of small objects, lines of text, tables, and mixtures.

Objects stand anywhere in their cells. Text stands on the patch raster, a character on two patches, one above the
other: what a tower of this size would else spend most of its training on is no subject here.

A picture is made of *cells* (an object, a string) that know their box, so that questions can say which
patches they need and the vision tower can be taught what every patch shows. Fonts and shapes are drawn
from what Pillow carries itself: the same seed gives the same pixels on every machine.
"""

import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 168
PATCH = 12
GRID = SIDE // PATCH  # patches along a side

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 225, 50),
    "green": (40, 160, 60),
    "blue": (45, 80, 210),
    "purple": (140, 50, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring", "star", "bar")
SIZES = ("small", "large")
CHARACTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"  # no I and no O: they look like 1 and 0
LETTERS, DIGITS = CHARACTERS[:-10], CHARACTERS[-10:]
TEXT_COLOURS = ("red", "green", "blue", "purple", "black")


@dataclass
class Thing:
    """An object of a scene."""

    row: int
    column: int
    colour: str
    shape: str
    size: str
    box: tuple  # x0, y0, x1, y1 in pixels

    def __str__(self):
        return f"{self.size} {self.colour} {self.shape}"


@dataclass
class Entry:
    """A string that stands in a picture: a line (column 0) or a table's cell."""

    row: int
    column: int
    text: str
    colour: str
    box: tuple
    characters: list = field(default_factory=list)  # a box per character


@dataclass
class Picture:
    kind: str  # "grid", "lines", "table", "mixed"
    rows: int = 0  # of the grid of objects, or of the table
    columns: int = 0
    things: list = field(default_factory=list)
    entries: list = field(default_factory=list)
    image: Image.Image = None

    def at(self, row, column):
        """The object there, or None."""
        for thing in self.things:
            if (thing.row, thing.column) == (row, column):
                return thing
        return None


def patches_of(box):
    """Indices of the patches that a box covers by 3 pixels or more in both directions."""
    x0, y0, x1, y1 = box
    found = []
    for y in range(max(0, int(y0) // PATCH), min(GRID - 1, int(y1) // PATCH) + 1):
        for x in range(max(0, int(x0) // PATCH), min(GRID - 1, int(x1) // PATCH) + 1):
            across = min(x1, (x + 1) * PATCH) - max(x0, x * PATCH)
            down = min(y1, (y + 1) * PATCH) - max(y0, y * PATCH)
            if across >= 3 and down >= 3:
                found.append(y * GRID + x)
    if not found:  # a thin thing on the edge of two patches
        x, y = int(x0 + x1) // 2 // PATCH, int(y0 + y1) // 2 // PATCH
        found.append(min(y, GRID - 1) * GRID + min(x, GRID - 1))
    return found


def draw_shape(pen, shape, x, y, r, colour):
    """One shape of radius r around (x, y)."""
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        s = round(r * 0.85)
        pen.rectangle((x - s, y - s, x + s, y + s), fill=colour)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
    elif shape == "diamond":
        pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=colour)
    elif shape == "cross":
        w = max(2, round(r * 0.36))
        pen.rectangle((x - r, y - w, x + r, y + w), fill=colour)
        pen.rectangle((x - w, y - r, x + w, y + r), fill=colour)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=max(3, round(r * 0.36)))
    elif shape == "star":
        points = []
        for i in range(10):
            reach = r * 1.1 if i % 2 == 0 else r * 0.42
            angle = np.pi * (i / 5 - 0.5)
            points.append((x + reach * np.cos(angle), y + reach * np.sin(angle)))
        pen.polygon(points, fill=colour)
    else:  # bar
        w = max(2, round(r * 0.42))
        pen.rectangle((x - r, y - w, x + r, y + w), fill=colour)


def background(rng, numbers):
    """A grey that no object's colour comes close to, with a slope and a little noise."""
    base = np.array([rng.randint(135, 185)] * 3, dtype=np.float32)
    base += [rng.uniform(-10, 10) for _ in range(3)]
    slope = rng.uniform(-14, 14), rng.uniform(-14, 14)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    field_ = ramp[None, :] * slope[0] + ramp[:, None] * slope[1]
    noise = numbers.integers(-5, 6, (SIDE, SIDE), dtype=np.int8)
    pixels = np.clip(base + (field_ + noise)[:, :, None], 0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "RGB")


def shade(rng, colour):
    """A colour's name leaves some room."""
    return tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in COLOURS[colour])


def place_things(picture, rng, pen, area, fill):
    """Objects in the cells of `area` = (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = area
    width, height = (x1 - x0) / picture.columns, (y1 - y0) / picture.rows
    cells = [(r, c) for r in range(picture.rows) for c in range(picture.columns)]
    count = max(1, round(fill * len(cells)))
    colours = list(COLOURS)
    for row, column in sorted(rng.sample(cells, count)):
        size = rng.choice(SIZES)
        radius = rng.randint(7, 8) if size == "small" else rng.randint(13, 15)
        slack_x, slack_y = width / 2 - radius - 3, height / 2 - radius - 3
        x = x0 + (column + 0.5) * width + rng.uniform(-slack_x, slack_x) * 0.8
        y = y0 + (row + 0.5) * height + rng.uniform(-slack_y, slack_y) * 0.8
        x, y = round(x), round(y)
        colour, shape = rng.choice(colours), rng.choice(SHAPES)
        draw_shape(pen, shape, x, y, radius, shade(rng, colour))
        down = radius * 0.42 if shape == "bar" else radius
        box = (x - radius, y - down, x + radius, y + down)
        picture.things.append(Thing(row, column, colour, shape, size, box))


def glyphs():
    """Every character as a mask of 12 x 22 pixels: Pillow's own bitmap font, doubled."""
    font = ImageFont.load_default()
    masks = {}
    for character in CHARACTERS:
        image = Image.new("L", (6, 11))
        ImageDraw.Draw(image).text((0, 0), character, fill=255, font=font)
        masks[character] = image.resize((12, 22), Image.NEAREST)
    return masks


GLYPHS = {}


def write(image, x, y, text, colour):
    """Returns the box of every character."""
    if not GLYPHS:
        GLYPHS.update(glyphs())
    boxes = []
    for i, character in enumerate(text):
        image.paste(colour, (x + 12 * i, y), GLYPHS[character])
        boxes.append((x + 12 * i, y + 3, x + 12 * i + 12, y + 19))
    return boxes


def string(rng, low, high):
    """Random letters, digits, or both: nothing that could be learnt by heart."""
    alphabet = rng.choice((LETTERS, LETTERS, DIGITS, CHARACTERS))
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(low, high)))


def add_entry(picture, rng, image, row, column, x, y, text, colour):
    boxes = write(image, x, y, text, shade(rng, colour))
    box = (boxes[0][0], boxes[0][1], boxes[-1][2], boxes[-1][3])
    picture.entries.append(Entry(row, column, text, colour, box, boxes))


def place_lines(picture, rng, image, count, top, longest=7):
    """`count` lines in the patch rows from `top` on, two patch rows each."""
    colours = rng.sample(TEXT_COLOURS, count)
    spare = GRID - top - 2 * count
    gaps = sorted(rng.randint(0, spare) for _ in range(count))
    for row in range(count):
        text = string(rng, min(3, longest), longest)
        x = rng.randint(0, GRID - len(text))
        y = top + gaps[row] + 2 * row
        add_entry(picture, rng, image, row, 0, x * PATCH, y * PATCH + 1, text, colours[row])


def place_table(picture, rng, image, pen, largest=4):
    picture.rows, picture.columns = rng.randint(min(2, largest), largest), rng.randint(min(2, largest), largest)
    width = rng.randint(3, 4 if picture.columns < 4 else 3)  # in patches, as everything here
    height = rng.randint(2, 3)
    x0 = rng.randint(0, GRID - width * picture.columns)
    y0 = rng.randint(0, GRID - height * picture.rows)
    line = tuple([rng.randint(60, 100)] * 3)
    left, right = x0 * PATCH, min(SIDE - 1, (x0 + width * picture.columns) * PATCH)
    top, bottom = y0 * PATCH, min(SIDE - 1, (y0 + height * picture.rows) * PATCH)
    for r in range(picture.rows + 1):
        y = min(bottom, top + r * height * PATCH)
        pen.line((left, y, right, y), fill=line, width=1)
    for c in range(picture.columns + 1):
        x = min(right, left + c * width * PATCH)
        pen.line((x, top, x, bottom), fill=line, width=1)
    colour = rng.choice(TEXT_COLOURS)
    alphabet = rng.choice((DIGITS, DIGITS, LETTERS, CHARACTERS))
    for r in range(picture.rows):
        for c in range(picture.columns):
            text = "".join(rng.choice(alphabet) for _ in range(2))
            x = x0 + c * width + rng.randint(0, width - 2)
            y = y0 + r * height + rng.randint(0, height - 2)
            add_entry(picture, rng, image, r, c, x * PATCH, y * PATCH + 1, text, colour)


def make(seed, kind, crowd=1.0):
    """The picture of a seed: any text or number that names it. `crowd` below 1 makes it emptier."""
    rng = random.Random(f"picture {seed}")
    numbers = np.random.default_rng(rng.getrandbits(64))
    picture = Picture(kind)
    image = background(rng, numbers)
    pen = ImageDraw.Draw(image)
    if kind == "grid":
        # Always the same 16 cells: with gaps, nobody could tell three rows from four.
        picture.rows, picture.columns = 4, 4
        place_things(picture, rng, pen, (0, 0, SIDE, SIDE), crowd * rng.uniform(0.25, 0.9))
    elif kind == "lines":
        place_lines(picture, rng, image, rng.randint(1, max(1, round(5 * crowd))), 0, max(1, round(7 * crowd)))
    elif kind == "table":
        place_table(picture, rng, image, pen, max(1, round(4 * crowd)))
    elif kind == "mixed":
        picture.rows, picture.columns = 2, 4
        place_things(picture, rng, pen, (0, 0, SIDE, 84), crowd * rng.uniform(0.5, 1.0))
        place_lines(picture, rng, image, rng.randint(1, max(1, round(3 * crowd))), 7, max(1, round(7 * crowd)))
    else:
        raise ValueError(f"no kind of picture: {kind}")
    picture.image = image
    return picture


def patch_labels(picture):
    """What every patch shows, for the vision tower's lessons: [7, patches] of small integers, 0 for nothing:
    colour, shape, size, character, row, column, and the place in reading order."""
    labels = np.zeros((7, GRID * GRID), dtype=np.int64)
    colours = list(COLOURS)
    for ordinal, thing in enumerate(picture.things):
        for patch in patches_of(thing.box):
            labels[:, patch] = (
                1 + colours.index(thing.colour), 1 + SHAPES.index(thing.shape), 1 + SIZES.index(thing.size),
                0, 1 + thing.row, 1 + thing.column, 1 + ordinal,
            )  # fmt: skip
    for entry in picture.entries:
        for i, (character, box) in enumerate(zip(entry.text, entry.characters)):
            for patch in patches_of(box):
                middle = (patch % GRID + 0.5) * PATCH
                if not box[0] <= middle < box[2]:
                    continue  # the neighbour fills more of it
                labels[:, patch] = (
                    1 + colours.index(entry.colour), 0, 0, 1 + CHARACTERS.index(character),
                    1 + entry.row, 1 + entry.column, 1 + i,
                )  # fmt: skip
    return labels


LABEL_SIZES = (9, 9, 3, 35, 6, 5, 17)
