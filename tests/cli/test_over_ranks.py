"""minidiff sample and evaluate on several ranks: the files of one process, byte for byte."""

import many_ranks
import pytest
from small_commands import pipeline
from small_runs import idx_set, tree
from small_text import new_text_run

# Batches and networks so small that there are several of them; rank r works in the folder that all share.
PROGRAM = """
import os, sys
import numpy as np
from minidiff import ranks
from minidiff.cli.app import app
from minidiff.evaluation import feature_classifier, prompt_agreement, report, samples
from minidiff.sampling import inputs
from minidiff.sampling.opening import open_pipeline
feature_classifier.MIN_STEPS = feature_classifier.MAX_STEPS = 2
feature_classifier.BATCH_SIZE, feature_classifier.MIN_SAMPLES, feature_classifier.TOGETHER = 4, 11, 4
samples.MIN_IMAGES = report.MIN_IMAGES = 8
inputs.BATCH_SIZE = report.BATCH_SIZE = 4
report.BOUND_IMAGES, report.BOUND_TIMESTEPS, prompt_agreement.PROMPT_BATCH_SIZE = 7, 2, 4
out = sys.argv[1]
os.makedirs(out, exist_ok=True)
os.environ["XDG_CACHE_HOME"] = os.path.abspath(f"{out}/cache")
for command in sys.argv[2:]:
    app([*command.format(out=out).split(), "--backend", "numpy", "--threads", "1"], standalone_mode=False)
prompts = ["red bar", "blue bar", "green bar"] * 3
sampled = prompt_agreement.sample_prompts(open_pipeline("text", "numpy"), prompts, 2.0, 2, 0, lambda: None)
if ranks.rank() == 0:
    np.save(f"{out}/prompts.npy", sampled)
"""
COMMANDS = [
    "sample images --n 11 --steps 3 --sampler ddpm --npz {out}/a.npz --gif {out}/a.gif --folder {out}/a",
    "sample images --n 9 --steps 2 --sampler heun --churn 1 --class 3 --out {out}/heun.png --preview {out}/preview.png",
    "sample images --seeds 3-12 --steps 2 --sampler euler_ancestral --out {out}/seeds.png",
    "sample images --n 3 --steps 2 --out {out}/few.png --gif {out}/few.gif",
    "sample text --prompt red --prompt blue --n 2 --steps 2 --sampler euler_ancestral --out {out}/prompts.png",
    "sample text --prompt red --steps 2 --height 16 --out {out}/prompt.png",
    "evaluate plain --against data --n 16 --steps 2 --out {out}/evaluation",
]


@pytest.mark.skipif(not many_ranks.MPIEXEC, reason="needs mpiexec: pip install minidiff[mpi]")
def test_the_files_of_one_process(tmp_path):
    pipeline(tmp_path / "images", num_class_embeds=11)
    pipeline(tmp_path / "plain")
    new_text_run(tmp_path / "text")
    idx_set(tmp_path / "data", n=12)
    idx_set(tmp_path / "data", n=40, prefix="t10k")
    for n in (1, 2):
        code, out, err = many_ranks.run(n, "-c", PROGRAM, f"on-{n}", *COMMANDS, cwd=tmp_path)
        assert code == 0, out + err
    one, two = (tree(tmp_path / f"on-{n}") for n in (1, 2))
    assert len(one) > 30 and set(one) == set(two)
    assert [name for name in one if one[name] != two[name]] == ["preview.png"]  # of rank 0's images
