"""Small state dicts with distinct values, written out by name and independent of the conversion
tables."""

from __future__ import annotations

import numpy as np

State = dict[str, np.ndarray]
DIMS, DEPTHS, RATIOS = (8, 12, 16, 20), (1, 2, 3, 1), (8, 4, 2, 1)


def filled(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random float32 tensors of these shapes."""
    rng = np.random.default_rng(seed)
    return {key: rng.standard_normal(shape, dtype=np.float32) for key, shape in shapes.items()}


def affine(name: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of a weight and a bias with as many entries as the weight's first axis."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def batch_norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a BatchNorm's four tensors and its counter."""
    stats = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return affine(name, (width,)) | stats | {f"{name}.num_batches_tracked": ()}


def mit() -> State:
    """MiT under the names of SegFormer's release, ImageNet classifier included."""
    shapes = affine("head", (10, DIMS[-1]))
    for s, (c, depth, r) in enumerate(zip(DIMS, DEPTHS, RATIOS, strict=True), start=1):
        before, kernel = (3, 7) if s == 1 else (DIMS[s - 2], 3)
        shapes |= affine(f"patch_embed{s}.proj", (c, before, kernel, kernel))
        shapes |= affine(f"patch_embed{s}.norm", (c,)) | affine(f"norm{s}", (c,))
        for j in range(depth):
            block = f"block{s}.{j}"
            shapes |= affine(f"{block}.norm1", (c,)) | affine(f"{block}.norm2", (c,))
            shapes |= affine(f"{block}.attn.q", (c, c)) | affine(f"{block}.attn.kv", (2 * c, c))
            shapes |= affine(f"{block}.attn.proj", (c, c))
            if r > 1:
                shapes |= affine(f"{block}.attn.sr", (c, c, r, r))
                shapes |= affine(f"{block}.attn.norm", (c,))
            shapes |= affine(f"{block}.mlp.fc1", (4 * c, c)) | affine(
                f"{block}.mlp.fc2", (c, 4 * c)
            )
            shapes |= affine(f"{block}.mlp.dwconv.dwconv", (4 * c, 1, 3, 3))
    return filled(shapes)


def segformer_head(width: int = 6, classes: int = 5) -> State:
    """SegFormer's head under mmseg's names, with the classifier it never calls."""
    shapes = affine("conv_seg", (classes, 7, 1, 1)) | affine("linear_pred", (classes, width, 1, 1))
    for i, c in enumerate(DIMS):
        shapes |= affine(f"linear_c.{i}.proj", (width, c))
    shapes |= {"linear_fuse.conv.weight": (width, 4 * width, 1, 1)}
    return filled(shapes | batch_norm("linear_fuse.bn", width), seed=1)


def daformer_head(width: int = 6, classes: int = 5) -> State:
    """DAFormer's head with separable ASPP."""
    shapes = affine("conv_seg", (classes, width, 1, 1))
    for i, c in enumerate(DIMS):
        shapes |= affine(f"embed_layers.{i}.proj", (width, c))
    for b in range(4):
        branch = f"fuse_layer.aspp_modules.{b}"
        if b == 0:
            shapes |= {f"{branch}.conv.weight": (width, 4 * width, 1, 1)}
            shapes |= batch_norm(f"{branch}.bn", width)
            continue
        shapes |= {f"{branch}.depthwise_conv.conv.weight": (4 * width, 1, 3, 3)}
        shapes |= batch_norm(f"{branch}.depthwise_conv.bn", 4 * width)
        shapes |= {f"{branch}.pointwise_conv.conv.weight": (width, 4 * width, 1, 1)}
        shapes |= batch_norm(f"{branch}.pointwise_conv.bn", width)
    shapes |= {"fuse_layer.bottleneck.conv.weight": (width, 4 * width, 3, 3)}
    return filled(shapes | batch_norm("fuse_layer.bottleneck.bn", width), seed=2)


def resnet(stem: str = "v1c") -> State:
    """ResNet under open-mmlab's or torchvision's names, ImageNet classifier included; one stage has
    a single block."""
    widths, depths, shapes = (8, 12, 16, 20), (1, 3, 2, 2), affine("fc", (10, 80))

    def conv_bn(conv: str, bn: str, kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {f"{conv}.weight": kernel} | batch_norm(bn, kernel[0])

    if stem == "v1c":
        for at, kernel in ((0, (4, 3, 3, 3)), (3, (4, 4, 3, 3)), (6, (8, 4, 3, 3))):
            shapes |= conv_bn(f"stem.{at}", f"stem.{at + 1}", kernel)
    else:
        shapes |= conv_bn("conv1", "bn1", (8, 3, 7, 7))
    inputs = 8
    for s, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for j in range(depth):
            block = f"layer{s}.{j}"
            shapes |= conv_bn(f"{block}.conv1", f"{block}.bn1", (width, inputs, 1, 1))
            shapes |= conv_bn(f"{block}.conv2", f"{block}.bn2", (width, width, 3, 3))
            shapes |= conv_bn(f"{block}.conv3", f"{block}.bn3", (4 * width, width, 1, 1))
            if j == 0:
                down = f"{block}.downsample"
                shapes |= conv_bn(f"{down}.0", f"{down}.1", (4 * width, inputs, 1, 1))
            inputs = 4 * width
    return filled(shapes, seed=4)


def deeplabv2_head(branches: int = 2, classes: int = 5) -> State:
    """DeepLabV2's head on `resnet()`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for b in range(branches):
        shapes |= affine(f"aspp_modules.{b}.conv", (classes, 80, 3, 3))
    return filled(shapes, seed=5)


def deeplabv3plus_head(normed: bool, width: int = 6, low: int = 7, classes: int = 5) -> State:
    """DeepLabV3+'s head on `resnet()`, with BatchNorm or with biases."""
    shapes = affine("conv_seg", (classes, width, 1, 1))
    convolutions = {
        "image_pool.1": (width, 80, 1, 1),
        "aspp_modules.0": (width, 80, 1, 1),
        "bottleneck": (width, 5 * width, 3, 3),
        "c1_bottleneck": (low, 32, 1, 1),
    }
    inputs = {f"aspp_modules.{b}": 80 for b in (1, 2, 3)}
    for name, size in (
        inputs | {"sep_bottleneck.0": width + low, "sep_bottleneck.1": width}
    ).items():
        convolutions[f"{name}.depthwise_conv"] = (size, 1, 3, 3)
        convolutions[f"{name}.pointwise_conv"] = (width, size, 1, 1)
    for name, kernel in convolutions.items():
        if normed:
            shapes |= {f"{name}.conv.weight": kernel} | batch_norm(f"{name}.bn", kernel[0])
        else:
            shapes |= affine(f"{name}.conv", kernel)
    return filled(shapes, seed=6)


def prefixed(prefix: str, state: State) -> State:
    """The same tensors under longer names."""
    return {prefix + key: value for key, value in state.items()}


def segmentor(head: State | None = None) -> State:
    """A whole network under mmseg's names."""
    encoder = {key: value for key, value in mit().items() if not key.startswith("head.")}
    decoder = prefixed("decode_head.", daformer_head() if head is None else head)
    return prefixed("backbone.", encoder) | decoder


def rebuilder(dim: int = 8, grid: int = 4) -> State:
    """The multi-scale Rebuilder, its position table included."""
    shapes: dict[str, tuple[int, ...]] = {"transformer.mask_token": (1, dim, 1, 1)}
    shapes |= affine("embedding.linear_embed", (dim, DIMS[-1])) | affine("transformer.norm", (dim,))
    for j in range(2):
        block = f"transformer.blocks.{j}"
        shapes |= affine(f"{block}.norm1", (dim,)) | affine(f"{block}.norm2", (dim,))
        shapes |= affine(f"{block}.attn.qkv", (3 * dim, dim))
        shapes |= affine(f"{block}.attn.proj", (dim, dim))
        shapes |= affine(f"{block}.mlp.fc1", (4 * dim, dim))
        shapes |= affine(f"{block}.mlp.fc2", (dim, 4 * dim))
    half, quarter = dim // 2, dim // 4
    layers = {1: ((0, dim, half), (3, half, quarter), (6, quarter, quarter), (7, quarter))}
    layers[2] = ((0, dim, half), (3, half, quarter), (4, quarter))
    layers[3], layers[4] = ((0, dim, half), (1, half)), ((0, dim),)
    for stage, steps in layers.items():
        name, channels = f"projector.projector{stage}", DIMS[stage - 1]
        for at, *widths in steps[:-1]:
            shapes[f"{name}.fpn.{at}.weight"] = (*widths, 4, 4)
            shapes[f"{name}.fpn.{at}.bias"] = (widths[1],)
        shapes |= affine(f"{name}.fpn.{steps[-1][0]}", (channels, steps[-1][1], 1, 1))
        shapes |= affine(f"{name}.norm", (channels,))
    for name, width in (("1.fpn.1", half), ("1.fpn.4", quarter), ("2.fpn.1", half)):
        shapes |= affine(f"projector.projector{name}", (width,))
    state = filled(shapes, seed=3)
    state["transformer.pos_embed"] = positions(dim, grid)
    return state


def positions(dim: int, grid: int) -> np.ndarray:
    """The fixed table, entry by entry."""
    table = np.zeros((1, grid * grid, dim), np.float32)
    part = dim // 4
    for row in range(grid):
        for column in range(grid):
            for k in range(part):
                w = 10000.0 ** (-k / part)
                for at, angle in ((0, row * w), (2 * part, column * w)):
                    table[0, row * grid + column, at + k] = np.sin(angle)
                    table[0, row * grid + column, at + part + k] = np.cos(angle)
    return table
