"""Sheets of images with a caption under each, or with labels of rows and columns."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minidiff.data.imaging import INK, PAPER, enlarged

SHORTEST = 4  # letters of a line: one and the three points
GAP = 8  # pixels between columns; a caption is GAP / 2 below its image


def captioned_sheet(images: np.ndarray, captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Images (N, H, W, C) uint8 in a grid, near-square if `columns` is None, each above its caption.

    Images are enlarged as in `sheet`; captions are wrapped to about their width and never truncated.
    """
    tiles = enlarged(images, None)  # (N, H, W, 3)
    n, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(n))
    font = ImageFont.load_default(12)
    letters = max(int((width + GAP) / font.getlength("n")), 4)
    texts = ["\n".join(textwrap.wrap(caption, letters)) for caption in captions]
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    bottoms = [canvas.multiline_textbbox((0, 0), text, font)[3] for text in texts]
    caption_heights = [math.ceil(max(bottoms[i : i + columns])) for i in range(0, n, columns)]  # of each row
    tops = np.cumsum([GAP, *(height + GAP + caption + GAP for caption in caption_heights)]).tolist()
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, tops[-1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        top, left = tops[i // columns], GAP + i % columns * (width + GAP)
        sheet.paste(Image.fromarray(tile), (left, top))
        draw.multiline_text((left + width / 2, top + height + GAP / 2), text, INK, font, anchor="ma", align="center")
    return sheet


def labelled_grid(images: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Images (R C, H, W, channels) uint8 in R rows and C columns: labels of rows to the left, of columns above.

    Images are enlarged as in `sheet`. Labels are wrapped to their width; of a row's, what is more than the row's height
    holds is left out, and "..." ends it.
    """
    tiles = enlarged(images, None)  # (R C, H, W, 3)
    _, height, width, _ = tiles.shape
    font = ImageFont.load_default(min(max(width // 8, 12), 24))
    line = font.getbbox("Ag")[3] + 4  # with the space between lines
    margin = 12 * line  # of the row labels
    above = [_wrapped(label, font, width) for label in columns]
    beside = [_wrapped(label, font, margin, max(height // line, 1)) for label in rows]
    left, top = margin + 2 * GAP, line * max(text.count("\n") + 1 for text in above) + GAP
    size = (left + len(columns) * (width + GAP), top + len(rows) * (height + GAP))
    grid = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(grid)
    for i, text in enumerate(above):
        draw.multiline_text(
            (left + i * (width + GAP) + width / 2, top - GAP / 2), text, INK, font, "md", align="center"
        )
    for i, text in enumerate(beside):
        draw.multiline_text((GAP, top + i * (height + GAP) + height / 2), text, INK, font, "lm")
    for i, tile in enumerate(tiles):
        row, column = divmod(i, len(columns))
        grid.paste(Image.fromarray(tile), (left + column * (width + GAP), top + row * (height + GAP)))
    return grid


def _wrapped(text: str, font: Any, width: float, most_lines: int | None = None) -> str:
    """A text in lines no wider than `width`, at most as many as given; long words are broken."""
    letters = max(int(width / font.getlength("i")), SHORTEST)
    while True:
        lines = textwrap.wrap(text, letters, max_lines=most_lines, placeholder="...")
        if letters == SHORTEST or all(font.getlength(line) <= width for line in lines):
            return "\n".join(lines)
        letters -= 1
