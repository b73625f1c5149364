"""The course's grids of images: a label for each row and each column."""

import matplotlib.pyplot as plt


def image_grid(images, rows, columns, inches=1.0):
    """A figure of images (rows, columns, H, W, C) uint8, each `inches` wide; rows and columns are their labels."""
    figure, axes = plt.subplots(
        len(rows), len(columns), squeeze=False, figsize=(inches * len(columns) + 1.2, (inches + 0.08) * len(rows) + 0.3)
    )
    for row, label, of_row in zip(axes, rows, images, strict=True):
        for axis, image in zip(row, of_row, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axis, label in zip(axes[0], columns, strict=True):
        axis.set_title(label)
    return figure
