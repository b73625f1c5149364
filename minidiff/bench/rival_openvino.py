"""Networks without a tape in OpenVINO, converted from diffusers' in torch; loaded by worker.py alone."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov  # pyright: ignore[reportMissingImports]  (in the extra `bench`)

from minidiff.bench import rival

PRECISIONS = {"OpenVINO": "f32", "OpenVINO bfloat16": "bf16"}
_threads = 1


def set_up(threads: int) -> None:
    """Limit OpenVINO to that many threads."""
    global _threads
    _threads = threads


def prepare(mode: str, op: str, inputs: dict[str, np.ndarray], settings: dict[str, Any]) -> Callable[[], Any]:
    """One evaluation by the CPU plugin in its latency mode; x_t is handed over in torch's order of axes, unshared."""
    arrays = [np.ascontiguousarray(np.moveaxis(inputs["x_t"], -1, 1)), inputs["t"]]  # t: diffusers' own sinusoids
    arrays += [inputs["text"]] if "text" in inputs else []
    hints = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[mode],
        "INFERENCE_NUM_THREADS": _threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        _convert(settings["config"], arrays, path)  # by a file, so that torch's weights do not stay in memory
        request = ov.Core().compile_model(path, "CPU", hints).create_infer_request()

    def run():
        y = next(iter(request.infer(arrays, share_inputs=True, share_outputs=True).values()))
        return {"y": np.moveaxis(y, 1, -1)}

    return run


def _convert(config: Any, arrays: list[np.ndarray], path: Path) -> None:
    """Write diffusers' network for inputs of these shapes in OpenVINO's format, in float32."""
    tensors = tuple(map(rival.torch.from_numpy, arrays))
    net = rival.unet(rival.KINDS["NCHW"], tensors[0], config).eval()
    with rival.torch.no_grad():
        model = ov.convert_model(net, example_input=tensors, input=[list(a.shape) for a in arrays])
    ov.save_model(model, path, compress_to_fp16=False)
