"""Sheets of images with a caption under each."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minidiff.data.imaging import INK, PAPER, enlarged

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
