"""Strong augmentation of whole batches from stored draws: colour jitter and Gaussian blur, each
image with its own strength.

Source: the transforms that DACS and its successors train with (peer: kornia 0.5.8 as called by
`dacs_transforms.py`), which differ from torchvision's: brightness is added, contrast scales about
zero and not about the mean.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from mrm_jax.types import Array

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLUR_RADIUS = 6
"""Taps kept on either side: at the recipes' widest sigma of 1.15 px the rest of the kernel sums to
less than 1e-6.
"""


def _each(values: jax.Array) -> jax.Array:
    """One value an image, [B], shaped to broadcast over [B, H, W]."""
    return values.reshape(-1, 1, 1)


def _to_hsv(image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hue in turns [0, 1), saturation and value of RGB [..., 3] in [0, 1]. Grey has hue 0."""
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(-1)
    span = value - image.min(-1)
    saturation = span / (value + 1e-6)
    divisor = jnp.where(span == 0, jnp.ones((), span.dtype), span)
    sixths = jnp.where(
        red == value,
        (green - blue) / divisor,
        jnp.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    return (sixths / 6) % 1, saturation, value


def _to_rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """RGB [..., 3] of a hue in turns (any real number), saturation and value."""
    channels = []
    for shift in (5, 3, 1):
        k = (shift + hue * 6) % 6
        ramp = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
        channels.append(value - value * saturation * ramp)
    return jnp.stack(channels, -1)


def colour_jitter(image: Array, strength: Array, order: Array) -> jax.Array:
    """Jittered pictures, f[B, H, W, 3] RGB in [0, 1] like `image`.

    strength: f[B, 4], what is added to the brightness, to the contrast's and the saturation's
    factor of 1, and to the hue in turns. order: i[B, n], the operations (numbered in that order)
    one after the other; each ends by clipping to [0, 1].
    """
    image, strength, order = jnp.asarray(image), jnp.asarray(strength), jnp.asarray(order)
    strength = strength.astype(image.dtype)
    added = _each(strength[:, BRIGHTNESS])[..., None]
    scale = 1 + _each(strength[:, CONTRAST])[..., None]
    richer, turned = 1 + _each(strength[:, SATURATION]), _each(strength[:, HUE])
    for position in range(order.shape[1]):
        now = _each(order[:, position])
        # Orders differ between images, so every operation runs and one is kept; saturation and hue
        # share their way to HSV.
        hue, saturation, value = _to_hsv(image)
        saturation = jnp.where(now == SATURATION, jnp.clip(saturation * richer, 0, 1), saturation)
        hue = jnp.where(now == HUE, hue + turned, hue)
        coloured = _to_rgb(hue, saturation, value)
        now = now[..., None]
        lit = jnp.where(now == BRIGHTNESS, image + added, image * scale)
        image = jnp.where(now >= SATURATION, coloured, jnp.clip(lit, 0, 1))
    return image


def blur_kernel_size(side: int) -> int:
    """Taps of the reference's blur along a side of `side` pixels: 51 for 512, 103 for 1024; always
    odd.
    """
    tenth = math.ceil(side * 0.1)
    return math.floor(tenth - 0.5 + tenth % 2)


def gaussian_blur(image: Array, sigma: Array) -> jax.Array:
    """Blurred pictures [B, H, W, C] with reflected borders; `sigma` f[B] in pixels, above 0, one an
    image.
    """
    image, sigma = jnp.asarray(image), jnp.asarray(sigma)
    wide = image.astype(jnp.promote_types(image.dtype, jnp.float32))
    for axis in (1, 2):
        radius = min(blur_kernel_size(image.shape[axis]) // 2, BLUR_RADIUS)
        wide = _blur_along(wide, sigma.astype(wide.dtype), axis, radius)
    return wide.astype(image.dtype)


def _blur_along(image: jax.Array, sigma: jax.Array, axis: int, radius: int) -> jax.Array:
    if radius < 1:
        return image
    distance = jnp.arange(-radius, radius + 1, dtype=image.dtype).reshape(1, -1)
    weight = jnp.exp(-0.5 * jnp.square(distance / sigma.reshape(-1, 1)))
    weight = weight / weight.sum(1, keepdims=True)
    widths = [(radius, radius) if i == axis else (0, 0) for i in range(image.ndim)]
    padded, length = jnp.pad(image, widths, mode="reflect"), image.shape[axis]
    total = jnp.zeros_like(image)
    for tap in range(2 * radius + 1):
        shifted = jax.lax.slice_in_dim(padded, tap, tap + length, axis=axis)
        total = total + shifted * _each(weight[:, tap])[..., None]
    return total
