"""What is updated: one array of any size, and the parameters of real models."""

from collections.abc import Callable

Shapes = list[tuple[int, ...]]
"""The shape of every leaf."""


def nature_dqn(actions: int = 6) -> Shapes:
    """Mnih et al., 2015: three convolutions and two dense layers, for 84 × 84 × 4."""
    convolutions = _biased((8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64))
    return convolutions + _biased((7 * 7 * 64, 512), (512, actions))


def lstm(vocabulary: int = 10_000, width: int = 650) -> Shapes:
    """Zaremba et al., 2014, medium: an embedding, two layers, a linear layer."""
    layer = [(width, 4 * width), (width, 4 * width), (4 * width,)]
    return [(vocabulary, width), *layer, *layer, *_biased((width, vocabulary))]


def gpt2_small() -> Shapes:
    """Radford et al., 2019: 12 blocks of width 768, the embedding tied."""
    width = 768
    norm = [(width,), (width,)]
    attention = norm + _biased((width, 3 * width), (width, width))
    block = attention + norm + _biased((width, 4 * width), (4 * width, width))
    return [(50_257, width), (1024, width), *12 * block, *norm]


def resnet50(classes: int = 1000) -> Shapes:
    """He et al., 2015: bottlenecks in four stages, the shortcuts projected."""
    found = _normed((7, 7, 3, 64))
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            inside = (1, 1, channels, width), (3, 3, width, width)
            found += _normed(*inside, (1, 1, width, 4 * width))
            if block == 0:
                found += _normed((1, 1, channels, 4 * width))
            channels = 4 * width
    return found + _biased((channels, classes))


def efficientnet_b0(classes: int = 1000) -> Shapes:
    """Tan and Le, 2019: inverted bottlenecks with squeeze and excitation."""
    found = _normed((3, 3, 3, 32))
    channels = 32
    # Expansion, kernel, channels, repeats: the paper's table 1.
    for expand, kernel, out, repeats in (
        (1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3),
        (6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1),
    ):  # fmt: skip
        for _ in range(repeats):
            wide, squeezed = expand * channels, channels // 4
            if expand > 1:
                found += _normed((1, 1, channels, wide))
            found += _normed((kernel, kernel, 1, wide))
            found += _biased((1, 1, wide, squeezed), (1, 1, squeezed, wide))
            found += _normed((1, 1, wide, out))
            channels = out
    return found + _normed((1, 1, channels, 1280)) + _biased((1280, classes))


def small_leaves(leaves: int = 1000) -> Shapes:
    """As many leaves of 100 elements."""
    return [(10, 10)] * leaves


def all_different(leaves: int = 40) -> Shapes:
    """As many small leaves, no two of one shape: what tracing takes longest for."""
    return [(3, leaf + 5) for leaf in range(leaves)]


def _biased(*kernels: tuple[int, ...]) -> Shapes:
    return [shape for kernel in kernels for shape in (kernel, kernel[-1:])]


def _normed(*kernels: tuple[int, ...]) -> Shapes:
    """Kernels without bias, each with the scale and the shift of a normalisation."""
    return [shape for kernel in kernels for shape in (kernel, *2 * [kernel[-1:]])]


SHAPES: dict[str, Callable[[], Shapes]] = {
    **{f"1e{power}": lambda size=10**power: [(size,)] for power in range(4, 9)},
    "nature-dqn": nature_dqn,
    "lstm": lstm,
    "gpt2": gpt2_small,
    "resnet50": resnet50,
    "efficientnet-b0": efficientnet_b0,
    "small-leaves": small_leaves,
    "all-different": all_different,
}
"""By the name that `--shapes` takes; in the order of leaves after single arrays."""

QUICK = ("1e4", "1e6", "nature-dqn")

SHORT = {
    "nature-dqn": "DQN",
    "gpt2": "GPT-2",
    "resnet50": "RN50",
    "efficientnet-b0": "EffB0",
    "small-leaves": "small",
    "all-different": "diff",
}
"""For narrow columns."""
