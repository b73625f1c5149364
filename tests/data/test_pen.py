import numpy as np
from PIL import Image

from minidiff.data.pen import FINE, Pen, colours, flip, mix, oval, pair, rgb, whole

RED, BLUE = (255, 0, 0), (0, 0, 255)
SQUARE = [(-1, -1), (1, -1), (1, 1), (-1, 1)]


def blank(side=20):
    return Image.new("RGB", (side * FINE, side * FINE), "black")


def shown(image):
    return np.asarray(image.reduce(FINE)).astype(int)


def centre(red):
    """x and y of the middle of what is red, in pixels whose first has its own middle at 0.5."""
    y, x = np.mgrid[: red.shape[0], : red.shape[1]] + 0.5
    return (x * red).sum() / red.sum(), (y * red).sum() / red.sum()


def test_colours():
    assert rgb("ff8000") == (255, 128, 0)
    assert colours("000000 0a0b0c") == [(0, 0, 0), (10, 11, 12)]
    assert mix((0, 100, 255), (100, 0, 255), 0.25) == (25, 75, 255)


def test_outlines():
    assert flip([(1, 2), (-3, 4)]) == [(-1, 2), (3, 4)]
    assert pair([(1, 2)]) == [[(1, 2)], [(-1, 2)]]
    assert whole([(0, -1), (1, 0), (0, 1)]) == [(0, -1), (1, 0), (0, 1), (-1, 0)]


def test_an_oval_has_its_area_and_place():
    image = blank()
    Pen(image, (9, 11), (4, 4), 0.3).fill(oval(0, 0, 1.5, 1), RED)
    red = shown(image)[..., 0] / 255
    # Drawn on a grid of quarter pixels: the outline, 32 pixels long, may be off by half of one, 4 in all.
    assert abs(red.sum() - np.pi * 6 * 4) < 4
    np.testing.assert_allclose(centre(red), (9, 11), atol=1 / FINE)


def test_the_curve_runs_through_its_points():
    image = blank()
    Pen(image, (10, 10), (6, 6), 0).fill(SQUARE, RED)
    red = shown(image)[..., 0]
    for inner, outer in ((4, 3), (15, 16)):  # the corners lie at 4 and 16, between these pixels
        assert red[inner, inner] > 128 > red[outer, outer]


def test_at_moves_and_zooms():
    image = blank()
    pen = Pen(image, (10, 10), (4, 4), 0)
    pen.at(1, -0.5, 0.5).fill(oval(0, 0, 1, 1), RED)
    red = shown(image)[..., 0] / 255
    np.testing.assert_allclose(centre(red), (14, 8), atol=1 / FINE)
    assert abs(red.sum() - np.pi * 2**2) < 2
    pen.fill(oval(0, 0, 0.5, 0.5), BLUE)  # the first pen stayed where it was
    assert shown(image)[10, 10, 2] == 255


def test_tilt_turns_x_towards_y():
    image = blank()
    Pen(image, (10, 10), (4, 4), np.pi / 2).at(1.5, 0).fill(oval(0, 0, 0.5, 0.5), RED)
    np.testing.assert_allclose(centre(shown(image)[..., 0]), (10, 16), atol=1 / FINE)


def test_a_line_has_its_width():
    image = blank()
    Pen(image, (10, 10), (4, 4), 0).line([(-2, 0), (2, 0)], 0.5, RED)
    assert abs(shown(image)[:, 10, 0].sum() / 255 - 2) <= 1 / FINE


def test_inside_clips():
    image = blank()
    pen = Pen(image, (10, 10), (4, 4), 0)
    pen.fill(oval(0, 0, 1, 1), RED)
    with pen.inside(oval(-1, 0, 1, 1), oval(1, 0, 0.5, 0.5)):
        pen.fill(oval(0, 0, 3, 3), BLUE)
    pixels = shown(image)
    assert tuple(pixels[10, 5]) == BLUE and tuple(pixels[10, 14]) == BLUE
    assert tuple(pixels[7, 10]) == RED and tuple(pixels[2, 10]) == (0, 0, 0)
