"""The course's grids of images: a label for each row and each column."""

import matplotlib.pyplot as plt
import numpy as np


def image_grid(images, rows, columns, inches=1.0):
    """A figure of images (rows, columns, H, W, C) uint8, each `inches` wide; rows and columns are their labels."""
    letters = max(len(line) for label in rows for line in label.split("\n"))
    lines = max(label.count("\n") + 1 for label in columns)
    size = (inches + 0.08) * np.array([len(columns), len(rows)]) + [0.09 * letters, 0.2 * lines]
    figure, axes = plt.subplots(len(rows), len(columns), squeeze=False, figsize=size)
    for row, label, of_row in zip(axes, rows, images, strict=True):
        for axis, image in zip(row, of_row, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    for axis, label in zip(axes[0], columns, strict=True):
        axis.set_title(label)
    return figure
