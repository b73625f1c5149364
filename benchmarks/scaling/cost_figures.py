"""Figures, tables and sentences of docs/scaling.md, all from the JSON file that measure_scaling.py writes."""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cost_model import (
    EXCHANGES,
    GIGABIT,
    LATENCY,
    Costs,
    alone,
    backward_share,
    cores,
    hidden_share,
    intervals,
    least,
    of_size,
    on_this_machine,
    operations_per_second,
    side_of,
    waited,
)
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

COLOURS = ["#999999", "#2f6f8f", "#a8452a", "#d9a441", "#5f7f2f", "#7a4a94"]
BANDWIDTHS = (1, 10, 100)  # Gbit/s
MACHINES = (1, 2, 4, 8, 16, 32, 64)
CIFAR, CIFAR_BATCH, OWN_BATCH = "U-Net", 128, 64  # DDPM's batch on CIFAR-10 (Ho et al. 2020); images for each machine
STABLE = "Stable Diffusion 1.x"
ACCELERATOR, ACCELERATOR_BATCH = 100e12, 8  # assumed: operations a second in training, and images for each
SECOND = 1e3  # milliseconds


def ms(seconds: float) -> str:
    """Seconds as milliseconds, in four digits or more."""
    return f"{SECOND * seconds:,.0f}" if SECOND * seconds >= 1000 else f"{SECOND * seconds:.4g}"


def names(found: dict[str, Any]) -> list[str]:
    """The sides in words."""
    several = len({side["reduction"] for side in found["sides"]}) > 1
    found_names = []
    for side in found["sides"]:
        reduction = f", {side['reduction']}" if several and side["processes"] > 1 else ""
        found_names.append(f"{side['processes']} x {side['threads']}{reduction}")
    return found_names


def machine(found: dict[str, Any]) -> str:
    """The machine of the measurement, and the time that it took."""
    facts = ", ".join(f"{name} {value}" for name, value in found["machine"].items()) + f", {found['MPI']}"
    return f"{facts}\nmeasured in {found['seconds'] / 60:.1f} minutes"


def steps_table(found: dict[str, Any], network: str) -> str:
    """Milliseconds of a step, least and median of the rounds; the least divided by that of one process on all cores."""
    together, rows = side_of(found, 1, cores(found)), []
    for row in (row for row in found["steps"] if row["network"] == network):
        base = min(row["seconds"][together])
        cells = [
            f"{ms(min(seconds))} / {ms(np.median(seconds))} ({min(seconds) / base:.2f})" for seconds in row["seconds"]
        ]
        rows.append(f"| {row['batch']} | {' | '.join(cells)} |")
    head = f"| {network}: batch | {' | '.join(names(found))} |"
    return "\n".join([head, "|--:|" + "--:|" * len(found["sides"]), *rows])


def steps_sentence(found: dict[str, Any], network: str) -> str:
    """How ranks of one thread compare with threads, at the largest batch."""
    n, row = cores(found), [row for row in found["steps"] if row["network"] == network][-1]
    ranks, threads = (min(row["seconds"][side_of(found, *side)]) for side in ((n, 1), (1, n)))
    less = "less" if ranks <= threads else "more"
    return (
        f"At a batch of {row['batch']}, a step of the {network} on {n} ranks of one thread takes "
        f"{abs(ranks / threads - 1):.1%} {less} than one process with {n} threads: {ms(ranks)} and "
        f"{ms(threads)} ms."
    )


def steps_figure(found: dict[str, Any], network: str):
    """Least step times against the batch, with the lines of the model."""
    fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    n, here = cores(found), on_this_machine(found, network)
    for side, (name, colour) in enumerate(zip(names(found), COLOURS, strict=False)):
        N, seconds = least(found, network, side)
        ax.plot(N, SECOND * seconds, "o", color=colour, label=name)
        chosen = found["sides"][side]
        if chosen["processes"] == 1:
            ax.plot(N, [SECOND * alone(found, network, chosen["threads"]).step(1, x) for x in N], color=colour, lw=1)
        elif (chosen["processes"], chosen["reduction"]) == (n, "exact"):
            ax.plot(N, [SECOND * here.step(n, x) for x in N], color=colour, lw=1)
    ax.set(xscale="log", yscale="log", xlabel="Batch size", ylabel="Step in ms, least of all rounds")
    ax.set_xticks(N, map(str, N))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.legend(title="processes x threads", frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return fig


def timeline_figure(found: dict[str, Any]):
    """The time line of one step: forward, backward and update of every rank, the exchange of its buckets below."""
    ranks = found["timeline"]["ranks"]
    fig, axes = plt.subplots(
        len(ranks), figsize=(8, 2.1 * len(ranks)), sharex=True, layout="constrained", squeeze=False
    )
    computes = {"forward": "#bcd3de", "backward": "#2f6f8f", "update": "#999999", "wait": "#eadfc6"}
    exchanges = dict(zip(EXCHANGES, ("#a8452a", "#d9a441", "#a8452a"), strict=True))
    for r, (ax, events) in enumerate(zip(axes[:, 0], ranks, strict=True)):
        for name, colour in computes.items():
            for start, end in intervals(events, (name,)):
                ax.barh(0, SECOND * (end - start), left=SECOND * start, color=colour, height=0.8)
        for name, colour in exchanges.items():
            for index, start, end in ((i, start, end) for kind, i, start, end in events if kind == name):
                ax.barh(1 + index, SECOND * (end - start), left=SECOND * start, color=colour, height=0.8)
        ax.set_ylabel(f"rank {r}\nbucket")
        buckets = 1 + max((i for name, i, *_ in events if name in EXCHANGES), default=-1)
        ax.set_yticks(range(buckets + 1), ["compute", *map(str, range(buckets))], fontsize=7)
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("Time in ms")
    seen = {name for events in ranks for name, *_ in events}
    shades = {name: colour for name, colour in (computes | exchanges).items() if name in seen}
    handles = [Patch(color=colour) for colour in shades.values()]
    fig.legend(handles, shades, loc="outside upper center", ncols=len(shades), frameon=False, fontsize=9)
    return fig


def timeline_sentence(found: dict[str, Any]) -> str:
    """How much of the exchange is under backward, and how long the ranks wait."""
    ends = [end for events in found["timeline"]["ranks"] for *_, end in events]
    return (
        f"Of the time in which an exchange is under way, {hidden_share(found):.0%} is under backward; a rank waits at "
        f"most {ms(waited(found))} of the step's {ms(max(ends))} ms for the rest. Backward takes "
        f"{backward_share(found):.0%} of forward, backward and update."
    )


def fit_table(found: dict[str, Any]) -> str:
    """The model's constants, and its largest error for ranks."""
    n, rows = cores(found), []
    for network in dict.fromkeys(row["network"] for row in found["steps"]):
        here = on_this_machine(found, network)
        N, measured = least(found, network, side_of(found, n, 1))
        error = max(abs(here.step(n, x) / y - 1) for x, y in zip(N, measured, strict=True))
        rows.append(
            f"| {network} | {ms(here.a)} ms | {ms(here.b)} ms | {here.c:.2f} "
            f"| {here.G / 1e6:.3g} MB | {ms(here.exchange(n))} ms | {error:.1%} |"
        )
    head = "| network | a | b, an image | c | G | X | largest error of T |"
    return "\n".join([head, "|---|--:|--:|--:|--:|--:|--:|", *rows])


def fit_sentence(found: dict[str, Any]) -> str:
    """Bandwidth and latency of the exchange on this machine."""
    here = on_this_machine(found, next(row["network"] for row in found["steps"]))
    return f"MPI's all-reduce between the {cores(found)} ranks: B = {here.B / 1e9:.3g} GB/s, L = {here.L * 1e6:.3g} µs."


def between(costs: Costs, bandwidth: float) -> Costs:
    """The costs with a network of so many Gbit/s between machines."""
    return replace(costs, B=bandwidth * GIGABIT, L=LATENCY)


def subjects(found: dict[str, Any]) -> dict[str, tuple[Costs, int]]:
    """What is scaled on paper: the costs on one machine, and the images for each machine."""
    rate = operations_per_second(found, CIFAR)
    return {
        "CIFAR-10, this machine": (alone(found, CIFAR, cores(found)), OWN_BATCH),
        "Stable Diffusion, this machine": (of_size(found, STABLE, rate), 1),
        "Stable Diffusion, accelerators": (of_size(found, STABLE, ACCELERATOR), ACCELERATOR_BATCH),
    }


def _by_bandwidth(head: str, align: str, rows: list[str]) -> str:
    """A table of these first columns and alignments, and a column of each bandwidth."""
    head = f"| {head} | " + " | ".join(f"{bandwidth} Gbit/s" for bandwidth in BANDWIDTHS) + " |"
    return "\n".join([head, align + "--:|" * len(BANDWIDTHS), *rows])


def strong_table(found: dict[str, Any]) -> str:
    """CIFAR-10 at a fixed batch: milliseconds of a step, and the speedup."""
    costs, rows = alone(found, CIFAR, cores(found)), []
    for n in (1, 8, 64):
        times = (between(costs, bandwidth) for bandwidth in BANDWIDTHS)
        cells = [f"{ms(c.step(n, CIFAR_BATCH))} ({c.speedup(n, CIFAR_BATCH):.1f})" for c in times]
        rows.append(f"| {n} | {CIFAR_BATCH // n} | {' | '.join(cells)} |")
    return _by_bandwidth("machines | images each", "|--:|--:|", rows)


def weak_table(found: dict[str, Any]) -> str:
    """A fixed number of images for each machine: seconds of a step, and the efficiency."""
    rows = []
    for name, (costs, images) in subjects(found).items():
        for n in (1, 8, 64):
            each = [between(costs, bandwidth) for bandwidth in BANDWIDTHS]
            cells = [f"{c.step(n, n * images):.3g} ({100 * c.efficiency(n, n * images):.3g}%)" for c in each]
            rows.append(f"| {name} | {n} | {n * images} | {' | '.join(cells)} |")
    return _by_bandwidth("network | machines | batch", "|---|--:|--:|", rows)


def hiding_table(found: dict[str, Any]) -> str:
    """Images for each of 64 machines from which on the exchange is hidden."""
    rows = []
    for name, (costs, _) in subjects(found).items():
        cells = [f"{between(costs, bandwidth).hiding_batch(64):,.1f}" for bandwidth in BANDWIDTHS]
        rows.append(f"| {name} | {costs.G / 1e6:,.0f} MB | {ms(costs.b)} ms | {' | '.join(cells)} |")
    return _by_bandwidth("network | G | b, an image", "|---|--:|--:|", rows)


def efficiency_figure(found: dict[str, Any]):
    """Efficiency against machines, at a fixed number of images for each."""
    subject = subjects(found)
    fig, axes = plt.subplots(1, len(subject), figsize=(8, 3), sharey=True, layout="constrained")
    for ax, (name, (costs, images)) in zip(axes, subject.items(), strict=True):
        for bandwidth, colour in zip(BANDWIDTHS, COLOURS[1:], strict=False):
            here = between(costs, bandwidth)
            ax.plot(MACHINES, [100 * here.efficiency(n, n * images) for n in MACHINES], "o-", color=colour, ms=3,
                    label=f"{bandwidth} Gbit/s")  # fmt: skip
        title = f"{name},\n{images} image{'s' * (images > 1)} each"
        ax.set(xscale="log", ylim=(0, 105), xlabel="Machines", title=title)
        ax.set_xticks(MACHINES, map(str, MACHINES))
        ax.minorticks_off()
        ax.title.set_fontsize(9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("Efficiency, %")
    axes[0].legend(frameon=False, loc="lower left", fontsize=9)
    return fig


def remedies_table(found: dict[str, Any], n: int = 64, bandwidth: int = 10) -> str:
    """What each change makes of a step of Stable Diffusion's U-Net on accelerators."""
    costs, images = subjects(found)["Stable Diffusion, accelerators"]
    costs = between(costs, bandwidth)
    changed = {
        "as it is": (costs, images, 1),
        f"a batch of {4 * images} for each": (costs, 4 * images, 1),
        "gradients in bfloat16": (replace(costs, G=costs.G / 2), images, 1),
        "a hundredth of the gradient": (replace(costs, G=costs.G / 100), images, 1),
        "an exchange every 8 steps": (costs, images, 8),
        "an exchange every 500 steps": (costs, images, 500),
    }
    rows = []
    for name, (some, each, every) in changed.items():
        N = n * each
        seconds = some.compute(n, N) + (some.exposed(n, N) if every == 1 else some.exchange(n) / every)
        sent = 2 * (n - 1) / n * some.G / every
        efficiency = some.compute(n, N) / seconds
        rows.append(f"| {name} | {sent / 1e9:.3g} GB | {seconds:.3g} s | {N / seconds:,.0f} | {efficiency:.0%} |")
    head = f"| {n} accelerators, {bandwidth} Gbit/s | sent by each, a step | step | images/s | efficiency |"
    return "\n".join([head, "|---|--:|--:|--:|--:|", *rows])


def memory_sentence(found: dict[str, Any], n: int = 64) -> str:
    """The memory of weights, gradient, moments and average, without and with sharding of the optimiser."""
    G = 4 * found["networks"][STABLE]["parameters"] / 1e9
    return (
        f"Weights, gradient, two moments and the moving average of Stable Diffusion's U-Net take 5 x {G:.3g} = "
        f"{5 * G:.3g} GB on every machine. With the moments and the average sharded over {n} machines they take "
        f"{2 * G:.3g} + {3 * G:.3g} / {n} = {2 * G + 3 * G / n:.3g} GB."
    )
