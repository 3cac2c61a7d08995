"""The networks of DACS and DAFormer in plain PyTorch. MiT is transformers' SegFormer.

Sources: DAFormer sec. 3.2; SegFormer sec. 3; DeepLab (Chen et al., PAMI 2018). Modules have the
names of ours, with dots, so that parts can be compared by name.
"""

from __future__ import annotations

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from mrm_jax import config

EXPANSION = 4


class Mit(nn.Module):
    """MiT by transformers: one map [B, C, h, w] a stage."""

    def __init__(self, encoder: config.Encoder):
        from transformers import (  # pyright: ignore[reportMissingImports]
            SegformerConfig,
            SegformerModel,
        )

        super().__init__()
        stages = len(encoder.dims)
        self.segformer = SegformerModel(
            SegformerConfig(
                num_encoder_blocks=stages,
                depths=list(encoder.depths),
                hidden_sizes=list(encoder.dims),
                num_attention_heads=list(encoder.heads),
                sr_ratios=list(encoder.sr_ratios),
                mlp_ratios=list(encoder.mlp_ratios),
                patch_sizes=[7] + [3] * (stages - 1),
                strides=list(encoder.strides),
                drop_path_rate=encoder.drop_path,
            )
        )

    def forward(self, image):
        """The maps of pictures [B, 3, H, W]."""
        return tuple(self.segformer(image, output_hidden_states=True).hidden_states)


def conv_bn(inputs: int, outputs: int, kernel: int = 1, **options) -> nn.Sequential:
    """Convolution without bias, BatchNorm and ReLU; the size stays at stride 1."""
    padding = options.get("dilation", 1) * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Bottleneck(nn.Module):
    """ResNet's block: 1x1, dilated 3x3 with the stride, 1x1."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int):
        super().__init__()
        width = outputs // EXPANSION
        self.conv1 = conv_bn(inputs, width)
        self.conv2 = conv_bn(width, width, 3, stride=stride, dilation=dilation)
        self.conv3 = nn.Sequential(
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        """[B, outputs, h, w]."""
        y = self.conv3(self.conv2(self.conv1(x)))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class ResNet(nn.Module):
    """ResNet with dilated last stages; the stem is of three 3x3 kernels ("v1c") or one 7x7."""

    def __init__(self, encoder: config.Encoder):
        super().__init__()
        width = encoder.dims[0] // EXPANSION
        widths, kernel = ((width // 2, width // 2, width), 3)
        if encoder.stem != "v1c":
            widths, kernel = (width,), 7
        convs, inputs = [], 3
        for i, outputs in enumerate(widths):
            convs.append(conv_bn(inputs, outputs, kernel, stride=1 if i else 2))
            inputs = outputs
        self.stem = nn.Sequential(*convs, nn.MaxPool2d(3, 2, 1))
        self.stages = len(encoder.dims)
        strides = (encoder.strides[0] // 4, *encoder.strides[1:])
        for i, outputs in enumerate(encoder.dims):
            blocks = []
            for number in range(encoder.depths[i]):
                dilation = encoder.dilations[i] if number else max(1, encoder.dilations[i] // 2)
                stride = 1 if number else strides[i]
                blocks.append(Bottleneck(inputs, outputs, stride, dilation))
                inputs = outputs
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, image):
        """The maps of pictures [B, 3, H, W]."""
        x, maps = self.stem(image), []
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
            maps.append(x)
        return tuple(maps)


def aligned(maps):
    """All maps at the size of the first one, concatenated along channels."""
    size = maps[0].shape[2:]
    sized = [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps[1:]]
    return torch.cat([maps[0], *sized], 1)


class Embed(nn.Module):
    """A dense layer on the channels of a map."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x):
        """[B, outputs, h, w]."""
        y = self.proj(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


class Aspp(nn.Module):
    """Parallel branches, a 1x1 or separable dilated 3x3 kernels, concatenated and mixed."""

    def __init__(self, inputs: int, channels: int, dilations: tuple[int, ...]):
        super().__init__()
        self.branches = len(dilations)
        for i, dilation in enumerate(dilations):
            branch = conv_bn(inputs, channels)
            if dilation > 1:
                spatial = conv_bn(inputs, inputs, 3, dilation=dilation, groups=inputs)
                branch = nn.Sequential(*spatial, *branch)
            setattr(self, f"branch{i}", branch)
        self.bottleneck = conv_bn(self.branches * channels, channels, 3)

    def forward(self, x):
        """[B, channels, h, w]."""
        found = [getattr(self, f"branch{i}")(x) for i in range(self.branches)]
        return self.bottleneck(torch.cat(found, 1))


class FusedHead(nn.Module):
    """DAFormer's and SegFormer's heads: stages embedded, aligned, fused, classified."""

    def __init__(self, decoder: config.Decoder, dims: tuple[int, ...], classes: int):
        super().__init__()
        channels, name = decoder.channels, "embed" if decoder.kind == "daformer" else "linear"
        self.names = [f"{name}{i}" for i in range(len(dims))]
        for own, dim in zip(self.names, dims, strict=True):
            setattr(self, own, Embed(dim, channels))
        whole = len(dims) * channels
        plain = decoder.kind == "segformer" or decoder.fusion == "conv1"
        self.fuse = conv_bn(whole, channels) if plain else Aspp(whole, channels, decoder.dilations)
        self.dropout = nn.Dropout2d(decoder.dropout)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, maps):
        """Logits [B, K, h, w] at the size of the first map."""
        embedded = [getattr(self, own)(m) for own, m in zip(self.names, maps, strict=True)]
        return self.classifier(self.dropout(self.fuse(aligned(embedded))))


class DeeplabV2(nn.Module):
    """The sum of parallel dilated 3x3 convolutions of the last map."""

    def __init__(self, decoder: config.Decoder, dims: tuple[int, ...], classes: int):
        super().__init__()
        self.branches = len(decoder.dilations)
        for i, dilation in enumerate(decoder.dilations):
            branch = nn.Conv2d(dims[-1], classes, 3, padding=dilation, dilation=dilation)
            setattr(self, f"branch{i}", branch)

    def forward(self, maps):
        """Logits [B, K, h, w] at the size of the last map."""
        return sum(getattr(self, f"branch{i}")(maps[-1]) for i in range(self.branches))


class Segmentor(nn.Module):
    """Encoder and decoder of a config."""

    def __init__(self, model: config.Model, classes: int):
        super().__init__()
        encoder, decoder = model.encoder, model.decoder
        self.encoder = Mit(encoder) if encoder.kind == "mit" else ResNet(encoder)
        head = DeeplabV2 if decoder.kind == "deeplabv2" else FusedHead
        self.decoder = head(decoder, encoder.dims, classes)

    def forward(self, image):
        """(logits [B, K, h, w], maps) of normalised pictures [B, 3, H, W]."""
        maps = self.encoder(image)
        return self.decoder(maps), maps
