"""The exercise of chapter 0 and the model that it samples with."""

import io

import numpy as np
from PIL import Image

import minidiff as md
from minidiff.data.imaging import to_uint8
from minidiff.diffusion.reverse import last_x_t
from minidiff.learn.chapters.start import EXERCISES, MODEL, sample_cat
from minidiff.learn.run import run_check

CAT = 0


def test_the_model_is_of_cats_and_dogs():
    pipeline = md.open_pipeline(MODEL, "numpy")
    assert pipeline.classes == ("cat", "dog") and pipeline.classes.index("cat") == CAT
    assert pipeline.image_shape == (32, 32, 3) and pipeline.schedule.prediction_type == "sample"


def test_the_answer_is_the_librarys_sample_as_an_image():
    """Of 0 to 1, where uint8 has 0 to 255."""
    pipeline = md.open_pipeline(MODEL, "numpy")
    rng = np.random.default_rng(3)
    x_t = last_x_t(md.sample(pipeline.unet, pipeline.schedule, (1, 32, 32, 3), rng, 10, cond=np.array([CAT])))
    image = sample_cat(pipeline.unet, pipeline.schedule, 3)
    assert image.shape == (32, 32, 3) and 0 <= image.min() < image.max() <= 1
    np.testing.assert_allclose(255 * image, to_uint8(x_t[0]), atol=0.5 + 1e-3)  # rounding to integers


def test_the_image_is_the_enlarged_sample():
    (exercise,) = EXERCISES
    assert exercise.image
    image = exercise.image(sample_cat)
    assert image.size == (256, 256) and len(np.unique(np.asarray(image)[:8, :8].reshape(-1, 3), axis=0)) == 1
    assert np.array_equal(np.asarray(exercise.image(lambda *_: np.full((32, 32, 3), 2.0))), np.full((256, 256, 3), 255))


def test_a_right_file_is_checked_with_its_image(tmp_path):
    path = tmp_path / "answer.py"
    path.write_text(
        "import numpy as np\nimport minidiff as md\n\n\ndef sample_cat(model, schedule, seed):\n"
        "    rng, labels = np.random.default_rng(seed), np.array([0])\n"
        "    for t, x_t, x0_hat in md.sample(model, schedule, (1, 32, 32, 3), rng, steps=10, cond=labels):\n"
        "        pass\n"
        "    return (x_t[0] + 1) / 2\n"
    )
    checked = run_check(1, path)
    assert checked.right and checked.image
    with Image.open(io.BytesIO(checked.image)) as image:
        assert image.format == "PNG" and image.size == (256, 256)
