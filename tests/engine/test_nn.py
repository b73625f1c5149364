"""Every layer against torch's (attention against diffusers'): output and all gradients; and what a Module is."""

import numpy as np
import pytest
import torch
from against_torch import CONV_FLOOR, check, differentiable, draw, nchw, nhwc, torch_layout
from diffusers.models.attention_processor import Attention
from torch.func import functional_call

from minidiff.engine import functional as F
from minidiff.engine import nn
from minidiff.engine.backend import get_backend
from minidiff.engine.tensor import Tensor

RNG = np.random.default_rng(0)


def layer(label, make, net, x, **call):
    """make(backend) gives our layer, net is torch's; both get the same drawn parameters, which are inputs like x."""
    state = {name: 0.5 * draw(*a.shape, seed=1) for name, a in make("numpy").state_dict().items()}

    def ours(x, **parameters):
        module = make(x.backend.name)
        for name, p in parameters.items():
            *path, last = name.split(".")
            owner = module
            for step in path:
                owner = owner[int(step)] if isinstance(owner, list) else getattr(owner, step)
            setattr(owner, last, nn.Parameter(p.data, p.backend))
        ...

    return differentiable(label, ours, theirs, CONV_FLOOR, x=x, **state)
