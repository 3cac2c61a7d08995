"""Building blocks of all networks: normalisation, fast convolutions, dropping.

Conventions. Maps are [B, H, W, C]. Every layer computes in the dtype of its input, and reductions
(statistics, softmax) in at least float32; parameters are stored in float32. An encoder casts its
input once, and everything behind it follows. A 1x1 convolution is a dense layer and is stored as
one, [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mrm_jax.models.parameters import Initializer, fan_out_normal, parameter, uniform
from mrm_jax.ops.attention import Form, attend
from mrm_jax.ops.batch_norm import batch_norm
from mrm_jax.ops.convolution import Padding, conv, same_padding
from mrm_jax.ops.depthwise import depthwise
from mrm_jax.ops.layer_norm import layer_norm
from mrm_jax.ops.platform import is_portable
from mrm_jax.ops.precision import at_least_float32
from mrm_jax.ops.product import Elementwise, product
from mrm_jax.ops.transposed import doubled, transposed_conv
from mrm_jax.types import Mode, Tree


def along_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` [C] shaped to broadcast over the last axis of `x`, without relying on rank
    promotion."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


class Dense(nn.Module):
    """A dense layer on the last axis of x, or of of(x), see `product`."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer
    use_bias: bool
    of: Elementwise | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., features] from [..., C]."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features))
        y = product(x, kernel.astype(x.dtype), self.of)
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", self.bias_init, (self.features,))
        return y + along_channels(bias.astype(x.dtype), y)


def dense(
    features: int,
    x: jax.Array,
    name: str,
    *,
    kernel_init: Initializer,
    bias_init: Initializer = nn.initializers.zeros,
    use_bias: bool = True,
    of: Elementwise | None = None,
) -> jax.Array:
    """`Dense` called `name` in the enclosing compact module, computed in `x`'s dtype."""
    return Dense(features, kernel_init, bias_init, use_bias, of, name=name)(x)


def pointwise(features: int, x: jax.Array, name: str) -> jax.Array:
    """A 1x1 convolution without bias."""
    return dense(features, x, name, kernel_init=fan_out_normal(features), use_bias=False)


def torch_dense(features: int, x: jax.Array, name: str) -> jax.Array:
    """A dense layer that starts as PyTorch's does: kernel and bias uniform in +-1/sqrt(fan_in)."""
    init = uniform(x.shape[-1] ** -0.5)
    return dense(features, x, name, kernel_init=init, bias_init=init)


class LayerNorm(nn.Module):
    """Normalises over the last axis. The reference mixes eps 1e-6 and 1e-5, so each use names its
    own."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` with zero mean and unit variance over the last axis, scaled and shifted; same shape
        and dtype."""
        scale = parameter(self, "scale", nn.initializers.ones, (x.shape[-1],))
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


class BatchNorm(nn.Module):
    """Batch normalisation that never writes its running averages.

    mode "eval" normalises with collection `batch_stats` {mean, var}. The other modes normalise with
    the statistics of the whole batch (biased variance; over all devices when the batch is sharded
    under jit) and sow (mean, *unbiased* variance) into collection `moments`, under the path and
    leaf names that `batch_stats` has. A leaf of `moments` is a tuple with one entry a call, in the
    order of calls, so that a network applied twice in one `apply` (context, then detail) hands out
    both. `fold_moments` turns them into new running averages.
    """

    eps: float = 1e-5
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        """`x` [..., C] normalised per channel over all other axes, scaled and shifted; same
        dtype."""
        channels = (x.shape[-1],)
        scale = parameter(self, "scale", self.scale_init, channels)
        bias = parameter(self, "bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if mode == "eval":
            wide = x.astype(at_least_float32(x))
            mean, var = (v.value.astype(wide.dtype) for v in (running_mean, running_var))
            factor = lax.rsqrt(var + self.eps) * scale.astype(wide.dtype)
            centred = wide - along_channels(mean, x)
            shift = along_channels(bias.astype(wide.dtype), x)
            return (centred * along_channels(factor, x) + shift).astype(x.dtype)
        normed, mean, var = batch_norm(x, scale, bias, self.eps)
        count = x.size // x.shape[-1]
        if not self.is_initializing():
            self.sow("moments", "mean", lax.stop_gradient(mean))
            self.sow("moments", "var", lax.stop_gradient(var) * (count / max(count - 1, 1)))
        return normed


def fold_moments(batch_stats: Tree, moments: Tree, momentum: float = 0.1) -> Tree:
    """Running averages after the forwards that handed out `moments`, oldest entry of each tuple
    first.

    One entry m moves an average a to (1 - momentum) * a + momentum * m (PyTorch's momentum; flax
    calls 0.9 what is 0.1 here). Layers that `moments` does not mention (they were not run) keep
    theirs. Structure and dtypes are those of `batch_stats`.
    """
    unknown = sorted(set(moments) - set(batch_stats))
    if unknown:
        raise ValueError(
            f"fold_moments: moments has {unknown[0]!r}, batch_stats only {sorted(batch_stats)}."
        )
    folded = dict(batch_stats)
    for name, moment in moments.items():
        if isinstance(moment, Mapping):
            folded[name] = fold_moments(batch_stats[name], moment, momentum)
            continue
        for entry in moment:
            folded[name] = (1 - momentum) * folded[name] + momentum * entry.astype(
                folded[name].dtype
            )
    return folded


def drop_path_scales(key: jax.Array, rates: np.ndarray, batch: int, branches: int = 2) -> jax.Array:
    """Factors f32[blocks, branches, batch] for the residual branches of each block (stochastic
    depth).

    A branch of a sample is dropped (0) with its block's rate, or kept and scaled up: 1 / (1 -
    rate).
    """
    keep = 1 - jnp.asarray(rates, jnp.float32).reshape(-1, 1, 1)
    kept = jax.random.bernoulli(key, keep, (len(rates), branches, batch))
    return jnp.where(kept, 1 / keep, 0.0)


def scale_samples(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`x` [B, ..., C] with every sample times its `factor` [B]; same dtype."""
    return x * factor.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def dropout2d(x: jax.Array, rate: float, mode: Mode) -> jax.Array:
    """`x` [B, H, W, C] with whole channels of a sample zeroed and the others divided by 1 - rate,
    in mode "train" only.

    To be called inside a compact module; needs the rng "dropout" where it acts.
    """
    return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=mode != "train" or rate == 0)(x)


def relu6(x: jax.Array) -> jax.Array:
    """`x` between 0 and 6, same dtype; no gradient outside, nor at 0 and 6."""
    if is_portable():  # `where` would store a picture of sixes in a file of ONNX
        return jnp.minimum(nn.relu(x), 6)
    return jnp.where(x < 6, nn.relu(x), jnp.asarray(6, x.dtype))


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), Phi the exact normal distribution, in at least float32; same dtype."""
    wide = x.astype(at_least_float32(x))
    return (wide * 0.5 * (1 + lax.erf(wide * 0.5**0.5))).astype(x.dtype)


Zeros = Literal["symmetric", "same"]
"""Where an odd kernel gets them: as many on either side, or as TensorFlow's "SAME", which is
lopsided where it is strided. Both give ceil(side / stride) rows and columns."""


def _padding(x: jax.Array, zeros: Zeros, kernel: int, stride: int, dilation: int) -> Padding:
    reach = dilation * (kernel - 1) + 1
    if zeros == "same":
        return same_padding((x.shape[1], x.shape[2]), reach, stride)
    return (reach // 2, reach // 2), (reach // 2, reach // 2)


class Conv(nn.Module):
    """Dense convolution, odd square kernel HWIO.

    kernel_init: Kaiming's rule counted on the output side where it is None.
    """

    features: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Initializer | None = None
    zeros: Zeros = "symmetric"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ceil(H / stride), ceil(W / stride), features]."""
        k = self.kernel
        init = self.kernel_init or fan_out_normal(k * k * self.features)
        kernel = parameter(self, "kernel", init, (k, k, x.shape[-1], self.features))
        padding = _padding(x, self.zeros, k, self.stride, self.dilation)
        y = conv(x, kernel.astype(x.dtype), self.stride, padding, self.dilation)
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,))
        return y + along_channels(bias.astype(x.dtype), y)


class PatchReduction(nn.Module):
    """Convolution whose kernel equals its stride, as one matrix product; rows and columns left over
    are dropped."""

    ratio: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H // ratio, W // ratio, C] from [B, H, W, C]; kernel HWIO [ratio, ratio, C, C]."""
        r, (batch, height, width, channels) = self.ratio, x.shape
        init = fan_out_normal(r * r * channels)
        kernel = parameter(self, "kernel", init, (r, r, channels, channels))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        h, w = height // r, width // r
        if h == 0 or w == 0:
            raise ValueError(
                f"The image is too small: attention reduces a {height}x{width} map by {r}. "
                "Use larger crops or smaller sr_ratios."
            )
        # `lax`'s convolution in a loop is 8-18 times slower backwards on CPU than this product.
        patches = (
            x[:, : h * r, : w * r].reshape(batch, h, r, w, r, channels).transpose(0, 1, 3, 2, 4, 5)
        )
        y = patches.reshape(batch, h, w, -1) @ kernel.astype(x.dtype).reshape(-1, channels)
        return y + along_channels(bias.astype(x.dtype), y)


class DepthwiseConv(nn.Module):
    """Depthwise convolution, odd square kernel."""

    kernel_init: Initializer
    dilation: int = 1
    use_bias: bool = True
    kernel: int = 3
    stride: int = 1
    zeros: Zeros = "symmetric"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, ceil(H / stride), ceil(W / stride), C] from [B, H, W, C]; kernel [k, k, 1, C]."""
        k = self.kernel
        kernel = parameter(self, "kernel", self.kernel_init, (k, k, 1, x.shape[-1]))
        padding = _padding(x, self.zeros, k, self.stride, self.dilation)
        held = not self.use_bias  # a BatchNorm follows, whose gradient is cheap
        y = depthwise(x, kernel.astype(x.dtype), self.stride, padding, self.dilation, held=held)
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", nn.initializers.zeros, (x.shape[-1],))
        return y + along_channels(bias.astype(x.dtype), y)


class SelfAttention(nn.Module):
    """Plain multi-head self-attention with one fused projection."""

    heads: int
    kernel_init: Initializer
    form: Form = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] from [B, N, C]."""
        qkv = dense(3 * x.shape[-1], x, "qkv", kernel_init=self.kernel_init)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        mixed = attend(query, key, value, self.heads, self.form)
        return dense(x.shape[-1], mixed, "proj", kernel_init=self.kernel_init)


class TransposedConv(nn.Module):
    """Transposed convolution 4x4, stride 2, with bias; starts as PyTorch's does (fan_in counted as
    16 * out)."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 2H, 2W, features] from [B, H, W, C]."""
        init = uniform((16 * self.features) ** -0.5)
        kernel = parameter(self, "kernel", init, (4, 4, x.shape[-1], self.features))
        bias = parameter(self, "bias", init, (self.features,))
        y = transposed_conv(x, kernel.astype(x.dtype))
        return y + along_channels(bias.astype(x.dtype), y)


class Doubling(nn.Module):
    """Transposed convolution 2x2, stride 2, whose outputs do not overlap; starts as PyTorch's does
    (fan_in counted as 4 * out)."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, 2H, 2W, features] from [B, H, W, C]; kernel as `transposed_conv`'s."""
        init = uniform((4 * self.features) ** -0.5)
        kernel = parameter(self, "kernel", init, (2, 2, x.shape[-1], self.features))
        y = doubled(x, kernel.astype(x.dtype))
        if not self.use_bias:
            return y
        bias = parameter(self, "bias", init, (self.features,))
        return y + along_channels(bias.astype(x.dtype), y)
