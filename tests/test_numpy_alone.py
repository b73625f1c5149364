"""`import minidiff` needs NumPy alone: the docs' pages run it in a browser, where no other library is loaded."""

import subprocess
import sys

ALONE = """
import sys

class NumPyAlone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "minidiff", "minidiff_kernels"}:
            raise ModuleNotFoundError(f"{name} is not NumPy", name=name)

sys.meta_path.insert(0, NumPyAlone())
"""

NETWORK = """
import numpy as np
import minidiff as md
from minidiff.api import __all__ as public
from minidiff.learn.chapters.start import MODEL

assert {getattr(md, name) for name in public}
pipeline = md.open_pipeline(MODEL, backend="numpy")
unet, schedule = md.guided(pipeline.unet, null=2, scale=2.0), pipeline.schedule
rng, labels = np.random.default_rng(0), np.array([0, 1])
for t, x_t, x0_hat in md.sample(unet, schedule, (2, 32, 32, 3), rng, steps=2, cond=labels):
    pass
assert t == -1 and np.isfinite(x_t).all()
x0, eps = x_t, rng.standard_normal(x_t.shape, dtype=np.float32)
md.training_loss(pipeline.unet, schedule, x0, np.array([10, 900]), eps, labels).backward()
assert all(np.isfinite(p.grad).all() for p in pipeline.unet.parameters())
"""

EXERCISES = """
from pathlib import Path
from minidiff.learn.catalogue import exercise_of
from minidiff.learn.stub import stub
from minidiff.learn.worker import report_on

path = Path(sys.argv[1])
for number in (1, 2, 3, 4):
    name = exercise_of(number).solution.__name__
    path.write_text(stub(number))
    assert report_on(exercise_of(number), path)["hint"].startswith(f"{name} is still blank")
    path.write_text(f"from minidiff.learn.catalogue import exercise_of\\n{name} = exercise_of({number}).solution")
    assert report_on(exercise_of(number), path) == {"right": True, "hint": ""}
"""


def run(program, *arguments):
    done = subprocess.run([sys.executable, "-c", ALONE + program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_networks_losses_and_samplers():
    run(NETWORK)


def test_the_first_exercises_and_their_checks(tmp_path):
    run(EXERCISES, str(tmp_path / "answer.py"))
