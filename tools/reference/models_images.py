"""Small synthetic pictures: shapes on a gradient, so that neighbouring patches differ and PNG stays
small.
"""

import numpy as np
from PIL import Image, ImageDraw


def draw(width, height, seed):
    rng = np.random.default_rng(seed)
    ramp_x = np.linspace(0.0, 1.0, width)[None, :, None]
    ramp_y = np.linspace(0.0, 1.0, height)[:, None, None]
    corner = rng.uniform(0, 255, (3, 3))
    base = corner[0] + (corner[1] - corner[0]) * ramp_x + (corner[2] - corner[0]) * ramp_y
    image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8), "RGB")
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        w, h = int(rng.integers(2, max(3, width // 2))), int(rng.integers(2, max(3, height // 2)))
        kind = int(rng.integers(0, 3))
        if kind == 0:
            pen.rectangle((x, y, x + w, y + h), fill=colour)
        elif kind == 1:
            pen.ellipse((x - w // 2, y - h // 2, x + w // 2, y + h // 2), fill=colour)
        else:
            pen.line((x, y, x + w, y - h), fill=colour, width=2)
    return image
