"""Which kept figure a notebook's image shows: the same figure, drawn at another resolution."""

import base64
import functools
import io

import numpy as np
from matplotlib.image import imread

from mmchar.study.site.figure_pages import FIGURES

_DPI = 150 / 110  # of a kept figure over that of a notebook's image, see `runs.figures` and `look.style`
_NEAR = 0.02  # margins differ a little, as text is drawn at another resolution
_CELLS = 40


def figure_of(png: str, names: list[str]) -> str | None:
    """The name of the kept figure that a PNG in base64 shows, of the same size and the most alike; None for none."""
    image = imread(io.BytesIO(base64.b64decode(png)))
    size = np.array(image.shape[:2]) * _DPI
    alike = {}
    for name in names:
        kept, thumbnail = _kept(name)
        if np.all(np.abs(kept / size - 1) < _NEAR):
            alike[name] = float(np.abs(thumbnail - _thumbnail(image)).mean())
    return min(alike, key=lambda name: alike[name]) if alike else None


@functools.cache
def _kept(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Height and width in pixels, and thumbnail, of a kept figure."""
    image = imread(FIGURES / f"{name}.png")
    return np.array(image.shape[:2]), _thumbnail(image)


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Mean colours, 0 to 1, of a grid of cells: [height, width, channel] -> [cells, cells, 3]."""
    rows, columns = (np.linspace(0, size, _CELLS, endpoint=False).astype(int) for size in image.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(image[..., :3], rows, axis=0), columns, axis=1)
    heights, widths = np.diff(rows, append=image.shape[0]), np.diff(columns, append=image.shape[1])
    return sums / (heights[:, None] * widths)[..., None]
