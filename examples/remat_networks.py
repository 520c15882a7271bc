"""Measures a training step of SpikingJelly's networks: bytes kept, peak and time, with and without `remat`.

    python examples/remat_networks.py sew_resnet18 --batch 32 --size 64 --steps 4 --rounds 3
    python examples/remat_networks.py sew_resnet18 --batch 32 --size 224 --rounds 20 --device cuda --graph

Compares SpikingJelly's eager neurons, its memopt at level 1 (blocks checkpointed, spikes as bits), our fused
`StandardLIF`, and that inside `remat()`. Steps of all four are interleaved; times are medians. Classifiers are small:
the point is activations. On CUDA the peak is the caching allocator's, kept bytes are not shown, and `--graph` times
steps that are replayed from a CUDA graph too: without the time in which Python launches them.
Needs, in a clone of this repository: pip install ".[cpu,peers]".
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from remat_digits import Block, Context, kept_bytes, network, peak_bytes, reset, step, with_fused_neurons
from torch import Tensor, nn

from revsnn_bench.kernel_speed import captured


def vision_operators() -> torch.library.Library | None:
    """Two operators that torchvision, which SpikingJelly imports, misses where it was built for another torch."""
    try:
        import torchvision  # noqa: F401

        return None
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


def networks(size: int, steps: int) -> dict[str, Any]:
    """Makers of networks for RGB images, and the modules that memopt takes as its segments (VGG has none)."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate
    from spikingjelly.activation_based.model import (
        maxformer,
        ms_resnet,
        qkformer,
        sew_resnet,
        spike_driven_transformer,
        spikformer,
        spiking_resnet,
        spiking_vgg,
    )

    lif: dict[str, Any] = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}

    def vgg() -> nn.Module:
        net = spiking_vgg.spiking_vgg11_bn(**lif, num_classes=10)
        net.avgpool, net.classifier = layer.AdaptiveAvgPool2d(1), nn.Sequential(layer.Linear(512, 10))
        functional.set_step_mode(net, "m")
        return net

    def made(maker: Any, **options: Any) -> nn.Module:
        net: nn.Module = maker(num_classes=10, **lif, **options)
        functional.set_step_mode(net, "m")
        return net

    wide: dict[str, Any] = {"T": steps, "embed_dims": 128}
    stages: dict[str, Any] = {"depths": (1, 1, 2), **wide}
    sizes: dict[str, Any] = {"img_size_h": size, "img_size_w": size, "patch_size": 4, "num_heads": 8, "depths": 4}
    sdt, segments_of_spikformer = spike_driven_transformer, (spikformer.SpikformerConv2dBNLIF, spikformer.SpikformerMLP)
    return {
        "digits": (partial(network, 3), (Block,)),
        "sew_resnet18": (partial(made, sew_resnet.sew_resnet18, cnf="ADD"), (sew_resnet.BasicBlock,)),
        "spiking_resnet18": (partial(made, spiking_resnet.spiking_resnet18), (spiking_resnet.BasicBlock,)),
        "ms_resnet18": (partial(made, ms_resnet.ms_resnet18, T=steps), (ms_resnet._MSBlock,)),
        "vgg11": (vgg, ()),
        "spikformer": (partial(made, spikformer.Spikformer, **sizes, **wide), segments_of_spikformer),
        "qkformer": (partial(made, qkformer.QKFormer, num_heads=(2, 4, 4), **stages), (qkformer._Block,)),
        "sdt": (partial(made, sdt.SpikeDrivenTransformer, depths=4, **wide), (sdt._Block,)),
        "maxformer": (partial(made, maxformer.MaxFormer, **stages), (maxformer._DWCBlock, maxformer._SSABlock)),
    }


def main() -> None:
    """Reads the command line, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    for name, default in (("--batch", 32), ("--size", 64), ("--steps", 4), ("--rounds", 3)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--graph", action="store_true", help="on CUDA, also time replays of a CUDA graph")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    library = vision_operators()  # gone with it
    torch.manual_seed(0)
    maker, segments = networks(options.size, options.steps)[options.network]
    net = maker().to(options.device)
    images = torch.randn(options.batch, 3, options.size, options.size).to(options.device)
    labels = torch.randint(0, 10, (options.batch,)).to(options.device)
    compare(net, segments, images, labels, options.steps, options.rounds, options.graph)
    del library


def compare(
    net: nn.Module, segments: tuple[type, ...], images: Tensor, labels: Tensor, steps: int, rounds: int, graph: bool
) -> None:
    """Prints kept bytes, peak and time of a step of each variant."""
    from revsnn_nodes import remat
    from spikingjelly.activation_based import memopt

    fused = with_fused_neurons(net)
    variants: dict[str, tuple[nn.Module, Context]] = {
        "SpikingJelly, as it comes": (net, nullcontext),
        "StandardLIF, fused": (fused, nullcontext),
        "StandardLIF, remat": (copy.deepcopy(fused), remat),
    }
    if segments:

        def forward(model: nn.Module) -> None:
            model(images[:2].expand(steps, 2, *images.shape[1:]))
            reset(model)

        bits = memopt.optimize_memory(copy.deepcopy(net), segments, forward, level=1)
        variants["SpikingJelly, memopt 1"] = bits, nullcontext
    runs = {name: partial(step, each, images, labels, context, steps) for name, (each, context) in variants.items()}
    kept, peak = {}, {}
    for name, (each, context) in variants.items():
        if images.is_cuda:
            peak[name] = cuda_peak_bytes(each, runs[name])
        else:
            peak[name] = peak_bytes(each, images, labels, context, steps)
            kept[name] = kept_bytes(each, images, context, steps)
        each.zero_grad()
    seconds = interleaved(runs, rounds)
    show("time", kept, peak, seconds)
    if graph:
        replays = {name: captured(each) for name, each in runs.items()}
        show("replayed", kept, peak, interleaved({name: each for name, each in replays.items() if each}, rounds))


def cuda_peak_bytes(net: nn.Module, run: Callable[[], None]) -> int:
    """Highest bytes that were requested of the caching allocator in a step, parameter gradients included."""
    run()
    net.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    run()
    torch.cuda.synchronize()
    return int(torch.cuda.memory_stats()["requested_bytes.all.peak"] - before)


def interleaved(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run, in rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    """Waits for CUDA, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(heading: str, kept: dict[str, int], peak: dict[str, int], seconds: dict[str, list[float]]) -> None:
    """Prints the table."""
    print(f"{'':26}{'kept':>12}{'peak':>12}{heading:>10}   each as a ratio to the first row")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians))
    for name in medians:
        ratios = f"1/{peak[first] / peak[name]:.2f}  {medians[name] / medians[first]:.2f}"
        if kept:
            ratios = f"1/{kept[first] / kept[name]:.2f}  {ratios}"
        of_kept = f"{kept[name] / 2**20:8.2f} MiB" if kept else f"{'':12}"
        print(f"{name:26}{of_kept}{peak[name] / 2**20:8.2f} MiB{1000 * medians[name]:7.1f} ms   {ratios}")


if __name__ == "__main__":
    main()
