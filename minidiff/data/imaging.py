"""Image files: arrays to sheets, strips, GIFs and plots; a file to an array.

Arrays of images are uint8 NHWC here; C is 1 (grey) or 3 (RGB). Files from unknown sources are read safely: few
formats, no decompression bombs. Files are written atomically.
"""

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minidiff.errors import MinidiffError
from minidiff.files import check_file, write_output

if TYPE_CHECKING:
    from PIL import Image

# The formats that are read; decoders of some others, such as EPS, run programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PARAMETERS = "parameters"  # the keyword of the PNG text chunk with the settings that an image was sampled with
SHOWN = 96  # pixels to which the longer side of a small image is enlarged
PAPER = (248, 246, 241)  # behind sheets and strips
INK = (70, 66, 74)  # captions
QUARTERS = (  # of the noise levels, in plots of the loss
    ("least noise", "#9cc3c0"), ("2nd quarter", "#6f9fb5"), ("3rd quarter", "#55719e"), ("most noise", "#453a68"),
)  # fmt: skip


class ReferenceCurve(NamedTuple):
    """The smoothed losses (n,) of another run after that many steps (n,)."""

    name: str
    steps: Sequence[int]
    losses: Sequence[float]


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Values clipped to [-1, 1], mapped to 0 ... 255 and rounded. Any shape."""
    return np.rint(np.clip(x, -1, 1) * 127.5 + 127.5).astype(np.uint8)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]: x / 127.5 - 1. Any shape; `to_uint8` inverts it exactly.

    Points, float32 already, are returned as they are.
    """
    if images.dtype == np.float32:
        return images
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def sheet(
    images: np.ndarray,
    columns: int | None = None,
    scale: int | None = None,
    gap: int = 4,
    cells: Sequence[int] | None = None,
) -> "Image.Image":
    """Images (N, H, W, C) uint8 in a grid, row by row, near-square if `columns` is None.

    scale  nearest-neighbour upscaling factor; None: to about 96 pixels
    gap    pixels of the sheet between images
    cells  (N,) ascending indices of the grid cells to fill; None: the first N
    """
    from PIL import Image

    tiles = enlarged(images, scale)  # (N, H, W, 3)
    n, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(n))
    cells = range(n) if cells is None else cells
    rows = cells[-1] // columns + 1
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), PAPER, np.uint8)
    for i, tile in zip(cells, tiles, strict=True):
        top = gap + i // columns * (height + gap)
        left = gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas)


def strip(images: np.ndarray, labels: Sequence[str] | None = None, scale: int | None = None) -> "Image.Image":
    """Images (N, H, W, C) uint8 in one row, with `labels`, short captions, under them."""
    from PIL import Image, ImageDraw, ImageFont

    tiles = enlarged(images, scale)  # (N, H, W, 3)
    n, height, width, _ = tiles.shape
    font = ImageFont.load_default(min(max(width // 7, 11), 24))
    captions = labels if labels is not None else []
    line = font.getbbox("Ag")[3] if captions else 0
    margin = max(width // 12, 4)
    cell = math.ceil(max([width, *(font.getlength(caption) for caption in captions)]))

    size = (n * (cell + margin) + margin, height + 2 * margin + (line + margin if captions else 0))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, tile in enumerate(tiles):
        left = margin + i * (cell + margin)
        canvas.paste(Image.fromarray(tile), (left + (cell - width) // 2, margin))
        if captions:
            draw.text((left + cell / 2, height + 2 * margin), captions[i], INK, font, anchor="ma")
    return canvas


def enlarged(images: np.ndarray, scale: int | None) -> np.ndarray:
    """(N, H, W, 1 or 3) -> (N, H*scale, W*scale, 3), nearest neighbour; scale None: to about SHOWN pixels."""
    height, width, channels = images.shape[1:]
    scale = scale or max(1, round(SHOWN / max(height, width)))
    rgb = images.repeat(3 // channels, axis=3)
    return rgb.repeat(scale, axis=1).repeat(scale, axis=2)


def save_gif(frames: Sequence["Image.Image"], path: str | Path, ms: int = 60, hold: int = 2000) -> None:
    """Write a GIF that loops for ever: each frame for `ms` milliseconds, the last one for `hold`.

    Every frame has its own palette of 256 colours. Raises MinidiffError as `save_image` does, and if the suffix is not
    .gif.
    """
    check_image_output(path, animated=True)
    first, *rest = [frame.convert("RGB").quantize(256) for frame in frames]
    durations = [ms] * len(rest) + [hold]
    write_output(
        Path(path),
        lambda file: first.save(
            file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False
        ),
    )


def save_image(image: "Image.Image", path: str | Path, parameters: str = "") -> None:
    """Write an image atomically, in the format of the path's suffix.

    A PNG file has `parameters`, unless it is empty, as its text chunk PARAMETERS; other formats do without.
    Raises MinidiffError if Pillow cannot write that format, or no file can be written there.
    """
    from PIL.PngImagePlugin import PngInfo

    kind, text = check_image_output(path), PngInfo()
    if parameters:
        text.add_text(PARAMETERS, parameters)
    more = {"pnginfo": text} if kind == "PNG" else {}
    write_output(Path(path), lambda file: image.save(file, kind, **more))


def save_each(
    images: np.ndarray, folder: Path, names: Sequence[str] | None = None, parameters: Iterable[str] = repeat("")
) -> None:
    """Write images (N, H, W, C) uint8 into a folder as 00000.png, 00001.png, ..., or under names, without suffix.

    parameters: of each image, as for `save_image`.
    """
    from PIL import Image

    names = [f"{i:05d}" for i in range(len(images))] if names is None else names
    for name, image, text in zip(names, images, parameters, strict=False):
        save_image(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), folder / f"{name}.png", text)


def check_image_output(path: str | Path, *inputs: str | Path, animated: bool = False) -> str:
    """The format, such as "PNG", of an image at this path; to be called before the work begins.

    Raises MinidiffError if Pillow cannot write colours in the suffix's format, if it is not .gif though `animated`, or
    if no file can be written there without overwriting one of the inputs (files.check_file).
    """
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower(), "")
    if animated and kind != "GIF":
        raise MinidiffError(f"{path}: an animation is a GIF; give a name that ends in .gif")
    if not _takes_colours(kind):
        raise MinidiffError(f"{path}: unknown image format; give a name that ends in .png or .jpg")
    check_file(path, *inputs)
    return kind


def _takes_colours(kind: str) -> bool:
    """Whether Pillow writes RGB images in that format: some need a library, some hold black and white alone."""
    from PIL import Image

    if kind not in Image.SAVE:
        return False
    try:
        Image.new("RGB", (16, 16)).save(io.BytesIO(), kind)
    except (OSError, ValueError):
        return False
    return True


def load_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """Read an image file, one of FORMATS -> (H, W, channels) uint8; channels is 1 or 3.

    Of several frames or pages the first is read. EXIF orientation is applied; transparent images are composited on
    white; CMYK is converted to RGB, and colour profiles are ignored; 16-bit grey is scaled to 8 bits and rounded, and
    of 16-bit colour Pillow keeps the upper 8 bits. Raises MinidiffError, which names the file, if it is missing,
    damaged, truncated or not an image, or has so many pixels that Pillow takes it for a decompression bomb.
    """
    from PIL import Image, ImageOps

    if not Path(path).is_file():
        raise MinidiffError(f"{path}: no such image file; check the name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                image = _eight_bit(ImageOps.exif_transpose(file))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # decoders raise any error on damaged files: OSError, SyntaxError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MinidiffError(f"{path}: cannot be read as an image ({reason}); replace or remove it") from error
    return pixels.reshape(image.height, image.width, channels)  # (H, W, C)


def _eight_bit(image: "Image.Image") -> "Image.Image":
    """16-bit grey to 8-bit grey, which Pillow would clip. Other modes are returned unchanged."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point and have no agreed range")
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("its grey values go beyond 16 bits")
    grey = np.where(grey == image.info.get("transparency"), 65535, grey)  # that grey is transparent: white
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8))


def save_loss_plot(
    steps: Sequence[int],
    losses: Sequence[float],
    path: str | Path,
    title: str,
    quarters: Sequence[Sequence[float]] = (),
    reference: ReferenceCurve | None = None,
) -> None:
    """Plot training losses on a logarithmic axis: each one faint, a moving average over n / 25 steps bold.

    steps, losses: (n,), n >= 1; steps whose loss is not positive and finite are left out. quarters: (n,) each, the
    losses of the four quarters of the noise levels, from the least noise to the most; their averages are thin lines.
    reference: the curve of another run, which is drawn whole, and the last average is marked "you are here".
    Raises MinidiffError as `save_image` does, and if matplotlib refuses MPLBACKEND.
    """
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    shown, finite = _finite(steps, losses)
    mean_steps, mean = _moving_average(shown, finite)
    axes.plot(shown, finite, color="#e9a96b", alpha=0.4, linewidth=0.8, label="each step")
    axes.plot(mean_steps, mean, color="#b5482f", linewidth=2, label=f"mean of {len(finite) - len(mean) + 1}")
    for (name, color), some in zip(QUARTERS, quarters, strict=False):
        shown, finite = _finite(steps, some)
        if finite:
            axes.plot(*_moving_average(shown, finite), color=color, linewidth=1, label=name)
    if reference is not None and len(mean):
        _plot_reference(axes, reference, (mean_steps[-1], mean[-1]))
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.set_title(title, parse_math=False)
    axes.yaxis.set_major_formatter("{x:g}")  # 0.2, where the default says 2 x 10^-1
    axes.yaxis.set_minor_formatter(lambda y, position: f"{y:g}" if f"{y:e}"[0] in "235" else "")
    axes.grid(which="both", color="#e6e2da", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_image(rendered(figure), path)


def _plot_reference(axes: Any, reference: ReferenceCurve, here: tuple[float, float]) -> None:
    """A reference curve, dashed, and the mark "you are here" at a point (step, loss)."""
    name, steps, losses = reference
    axes.plot(steps, losses, color="#57534e", linewidth=1.2, linestyle="--", label=name, zorder=4)
    axes.plot(*here, "o", color="#b5482f", markeredgecolor="white", markersize=8, zorder=5)
    side, offset = ("right", -8) if here[0] > steps[-1] / 2 else ("left", 8)  # towards the middle of the plot
    style = {"textcoords": "offset points", "color": "#b5482f", "weight": "bold", "ha": side, "zorder": 5}
    axes.annotate("you are here", here, (offset, 10), **style)


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure of that size in inches, at 150 pixels an inch.

    Raises MinidiffError if matplotlib refuses MPLBACKEND.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only plots need it
        from matplotlib.figure import Figure
    except ValueError as error:  # of MPLBACKEND
        raise MinidiffError(f"matplotlib: {error}; unset the variable MPLBACKEND".replace("\n", " ")) from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # becomes figure.canvas
    return figure


def rendered(figure: Any) -> "Image.Image":
    """A figure of `new_figure` as an RGB image."""
    from PIL import Image

    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def _finite(steps: Sequence[int], losses: Sequence[float]) -> tuple[list[int], list[float]]:
    """The steps whose loss is positive and finite, and those losses."""
    found = [(step, loss) for step, loss in zip(steps, losses, strict=True) if 0 < loss < math.inf]
    return [step for step, _ in found], [loss for _, loss in found]


def _moving_average(steps: list[int], losses: list[float]) -> tuple[list[int], np.ndarray]:
    """The mean of every n / 25 losses in a row, and the step in the middle of each, so that the curve does not lag."""
    window = max(1, len(losses) // 25)
    middle = (window - 1) // 2
    total = np.cumsum(np.insert(np.asarray(losses, np.float64), 0, 0))
    means = (total[window:] - total[:-window]) / window  # (n - window + 1,)
    return steps[middle : middle + len(means)], means
