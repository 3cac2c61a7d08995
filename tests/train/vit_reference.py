"""The losses of a step of `vit_run` in plain NumPy, from the papers' equations.

All is analytic in the parameters and works on complex numbers, so that the imaginary part of
f(x + i h d) / h is the derivative along d to the last digits: nothing is subtracted, h may be tiny.
Conventions: kernels [in, out] and HWIO, transposed ones flipped against PyTorch's; the first axis
of what lies under `blocks` is the block.
"""

import numpy as np
from scipy.special import erf

PATCH, GRID, HEADS = 7, 3, 2
TAU = 2 * np.pi
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def layer_norm(x, p, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def gelu(x):
    """x times the normal distribution function; SciPy's complex `erf` takes ten times as long."""
    below, density = (1 + erf(x.real / 2**0.5)) / 2, np.exp(-x.real * x.real / 2) / TAU**0.5
    return x * (below + 1j * x.imag * density if np.iscomplexobj(x) else below)


def softmax(x):
    x = np.exp(x - x.real.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def attention(x, p):
    count, length, dim = x.shape
    query, key, value = (
        dense(x, p["qkv"]).reshape(count, length, 3, HEADS, -1).transpose(2, 0, 3, 1, 4)
    )
    share = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(dim // HEADS))
    return dense((share @ value).swapaxes(1, 2).reshape(x.shape), p["proj"])


def block(x, p, eps):
    """One of DINOv2's, with LayerScale, or of the Rebuilder's, without."""
    x = x + p.get("ls1", 1) * attention(layer_norm(x, p["norm1"], eps), p["attn"])
    hidden = gelu(dense(layer_norm(x, p["norm2"], eps), p["mlp"]["fc1"]))
    return x + p.get("ls2", 1) * dense(hidden, p["mlp"]["fc2"])


def nth(tree, i):
    """The i-th of stacked blocks."""
    return {k: nth(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def bilinear(source, target):
    """Weights [target, source]: half-pixel centres, clamped at the border."""
    at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(source)), 0)


def resize(x, size):
    rows, columns = bilinear(x.shape[1], size[0]), bilinear(x.shape[2], size[1])
    return np.einsum("ri,cj,bijk->brck", rows, columns, x, optimize=True)


def nearest(x, size):
    rows, columns = (np.arange(n) * old // n for n, old in zip(size, x.shape[1:3], strict=True))
    return x[:, rows][:, :, columns]


def cubic(count):
    """Weights [count, GRID] of the learned positions: a = -0.75, a step of GRID / (count + 0.1),
    four taps, clamped."""
    weights = np.zeros((count, GRID))
    for i in range(count):
        centre = (i + 0.5) * GRID / (count + 0.1) - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            x, a = abs(centre - tap), -0.75
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            weights[i, min(max(tap, 0), GRID - 1)] += near if x <= 1 else far
    return weights


def transposed(x, kernel, padding=0):
    """PyTorch's ConvTranspose2d of stride 2: every input adds its window to the output."""
    count, height, width, _ = x.shape
    weight, side = kernel[::-1, ::-1], len(kernel)
    shape = (count, 2 * height + side - 2, 2 * width + side - 2, kernel.shape[-1])
    y = np.zeros(shape, np.result_type(x, kernel))
    for a in range(side):
        for b in range(side):
            y[:, a : a + 2 * height : 2, b : b + 2 * width : 2] += x @ weight[a, b]
    return y[:, padding : padding + 2 * height, padding : padding + 2 * width]


def convolution(x, kernel):
    """3x3, with zeros around."""
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [(a, b) for a in range(3) for b in range(3)]
    return sum(x[:, a : a + height, b : b + width] @ kernel[a, b] for a, b in taps)


def encode(p, image, hide=None):
    """DINOv2's last map: padded to whole patches; hidden ones become the mask token before class
    token and positions."""
    count, height, width, _ = image.shape
    rows, columns = -(-height // PATCH), -(-width // PATCH)
    below, right = rows * PATCH - height, columns * PATCH - width
    image = np.pad(image, ((0, 0), (0, below), (0, right), (0, 0)))
    patches = image.reshape(count, rows, PATCH, columns, PATCH, 3)
    kernel = p["patch_embed"]["kernel"]
    x = np.einsum("brpcqk,pqkd->brcd", patches, kernel, optimize=True) + p["patch_embed"]["bias"]
    if hide is not None:
        x = np.where(hide[..., None], p["mask_token"], x)
    learned = p["positions"][1:].reshape(GRID, GRID, -1)
    places = np.einsum("ri,cj,ijk->rck", cubic(rows), cubic(columns), learned, optimize=True)
    x = (x + places).reshape(count, rows * columns, -1)
    first = p["cls_token"] + p["positions"][:1]
    x = np.concatenate([np.broadcast_to(first, (count, *first.shape)), x], 1)
    for i in range(len(p["blocks"]["ls1"])):
        x = block(x, nth(p["blocks"], i), 1e-6)
    return layer_norm(x, p["norm"], 1e-6)[:, 1:].reshape(count, rows, columns, -1)


def decode(p, x, size):
    """VFM-UDA's head, its logits at the picture's size; the padding is cut."""
    padded = x.shape[1] * PATCH, x.shape[2] * PATCH
    x = gelu(layer_norm(transposed(x, p["up1"]["kernel"]), p["norm1"], 1e-6))
    x = layer_norm(transposed(x, p["up2"]["kernel"]), p["norm2"], 1e-6)
    x = layer_norm(convolution(x, p["conv"]["kernel"]), p["norm3"], 1e-6)
    return resize(dense(x, p["classifier"]), padded)[:, : size[0], : size[1]]


def places(grid, dim):
    """The Rebuilder's fixed table; single precision in the released module, so here too."""
    angles = 10000.0 ** (-np.arange(dim // 4) / (dim // 4))
    row, column = (axis.reshape(-1, 1) * angles for axis in np.indices(grid))
    table = np.concatenate([np.sin(row), np.cos(row), np.sin(column), np.cos(column)], 1)
    return table.astype(np.float32)


def rebuild(p, x, hide):
    """`x` with what lies under hidden cells of the grid predicted from the others."""
    grid, size = hide.shape[1:], x.shape[1:3]
    tokens = np.where(hide[..., None], p["mask_token"], resize(dense(x, p["embed"]), grid))
    tokens = tokens.reshape(len(x), grid[0] * grid[1], -1)
    tokens = tokens + places(grid, tokens.shape[-1])
    for i in range(len(p["blocks"]["norm1"]["scale"])):
        tokens = block(tokens, nth(p["blocks"], i), 1e-5)
    tokens = layer_norm(tokens, p["norm"], 1e-5).reshape(len(x), *grid, -1)
    project = p["projector1"]
    doubled = transposed(tokens, project["deconv0"]["kernel"], 1) + project["deconv0"]["bias"]
    made = layer_norm(resize(dense(doubled, project["conv"]), size), project["norm"], 1e-6)
    return np.where(nearest(hide, size)[..., None], made, x)


def cross_entropy(logits, label, weight):
    """The mean over all pixels; ignored ones add 0 and count."""
    highest = logits.real.max(-1, keepdims=True)
    logs = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logs, np.where(label == 255, 0, label)[..., None], -1)[..., 0]
    return np.where(label == 255, 0, -chosen * weight).mean()


def pseudo_labels(teacher, target, valid, threshold):
    """Every pixel's likeliest class, its weight, and the share of sure pixels."""
    logits = decode(teacher["decoder"], encode(teacher["encoder"], target), target.shape[1:3])
    share = (softmax(logits).max(-1) >= threshold).mean()
    return logits.argmax(-1), share * valid, share


def class_mix(label, scores):
    """Pixels of the half of the batch's labels, 255 among them, whose scores are highest."""
    present = np.unique(label)
    order = present[np.argsort(-scores[:, present], -1)]
    chosen = order[:, : (len(present) + 1) // 2]
    return (label[..., None] == chosen[:, None, None]).any(-1)


def views(teacher, batch, draws, method):
    """The passes' pictures, labels and weights, and the teacher's share of sure pixels."""
    source, target = ((d.image - MEAN) / STD for d in (batch.source, batch.target))
    label = batch.source.label.astype(int)
    guess, weight, share = pseudo_labels(teacher, target, batch.target.valid, method.threshold)
    pasted = class_mix(label, np.asarray(draws.mix))
    mixed = np.where(pasted[..., None], source, target)
    return {
        "source": (source, label, np.ones(label.shape)),
        "mixed": (mixed, np.where(pasted, label, guess), np.where(pasted, 1, weight)),
        "masked": (target, guess, weight),
        "reconstructed": (target, guess, weight),
    }, share


def losses(params, views, draws, method):
    """Cross entropy of every pass, and their weighted sum, `total`."""
    network, found = params["segmentor"], {}
    hide = {"masked": np.asarray(draws.mask["masked"]) < method.mic.ratio}
    for name, (image, label, weight) in views.items():
        features = encode(network["encoder"], image, hide.get(name))
        if name == "reconstructed":
            hidden = np.asarray(draws.mask[name]) <= method.mrm.ratio
            features = rebuild(params["rebuilder"], features, hidden)
        logits = decode(network["decoder"], features, image.shape[1:3])
        found[name] = cross_entropy(logits, label, weight)
    weights = {"masked": method.mic.weight, "reconstructed": method.mrm.weight}
    return found | {"total": sum(weights.get(name, 1) * loss for name, loss in found.items())}
