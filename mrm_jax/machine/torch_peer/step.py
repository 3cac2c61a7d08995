"""A training step of DACS, DAFormer or MIC in plain PyTorch, in the order of the published code:
teacher, source, mixed, masked, update.

Sources: DACS (Tranheden et al., 2021), DAFormer (Hoyer et al., 2022), MIC (Hoyer et al., 2023). The
same passes as ours make, on the same pictures; what is drawn at random is drawn here.
"""

from __future__ import annotations

import copy

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from mrm_jax.config import Config, input_stats, mic_block
from mrm_jax.label_ids import IGNORE
from mrm_jax.machine.noise import noise
from mrm_jax.machine.torch_peer.networks import Segmentor


def upsampled(logits, size):
    """Logits [B, K, *size]."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def cross_entropy(logits, label, weight=None):
    """The mean over all pixels of the weighted cross entropy of upsampled logits."""
    logits = upsampled(logits, label.shape[1:])
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    return (loss if weight is None else loss * weight).mean()


@torch.no_grad()
def pseudo_label(logits, size, threshold: float):
    """(labels [B, *size], weights [B, *size]) by the teacher's logits."""
    confidence, label = torch.softmax(upsampled(logits, size), 1).max(1)
    share = (confidence >= threshold).float().mean()
    return label, torch.ones_like(confidence) * share


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, done: int, decay: float) -> None:
    """Moves the teacher's parameters towards the student's."""
    kept = min(1 - 1 / (done + 1), decay)
    for mean, now in zip(teacher.parameters(), student.parameters(), strict=True):
        mean.mul_(kept).add_(now, alpha=1 - kept)


@torch.no_grad()
def class_mask(label):
    """bool[B, H, W]: the pixels of half of the batch's classes, drawn for each image."""
    classes = torch.unique(label)
    half = (len(classes) + 1) // 2
    chosen = [classes[torch.randperm(len(classes))[:half]] for _ in label]
    return torch.stack([torch.isin(row, mine) for row, mine in zip(label, chosen, strict=True)])


@torch.no_grad()
def hidden(count: int, size, block: int, ratio: float):
    """bool[count, 1, *size]: blocks of `block` px, each hidden with probability `ratio`."""
    grid = [max(round(side / block), 1) for side in size]
    return F.interpolate((torch.rand(count, 1, *grid) <= ratio).float(), size) > 0


def to_hsv(image):
    """Hue in turns, saturation and value [H, W] of RGB [3, H, W] in [0, 1]."""
    value, top = image.max(0)
    span = value - image.min(0).values
    divisor = torch.where(span == 0, torch.ones_like(span), span)
    red, green, blue = image
    sixths = torch.stack([green - blue, blue - red, red - green]) / divisor
    sixths = sixths + torch.tensor([0.0, 2.0, 4.0]).reshape(3, 1, 1)
    hue = (sixths.gather(0, top[None])[0] / 6) % 1
    return hue, span / (value + 1e-6), value


def to_rgb(hue, saturation, value):
    """RGB [3, H, W]."""
    k = (torch.tensor([5.0, 3.0, 1.0]).reshape(3, 1, 1) + hue * 6) % 6
    ramp = torch.minimum(k, 4 - k).clamp(0, 1)
    return value - value * saturation * ramp


def jittered(image, strength: float):
    """A picture [3, H, W] in [0, 1], changed in brightness, contrast, saturation and hue in an
    order of its own."""
    amounts = (2 * torch.rand(4) - 1) * strength
    for operation in torch.randperm(4).tolist():
        amount = amounts[operation]
        if operation == 0:
            image = (image + amount).clamp(0, 1)
        elif operation == 1:
            image = (image * (1 + amount)).clamp(0, 1)
        else:
            hue, saturation, value = to_hsv(image)
            if operation == 2:
                saturation = (saturation * (1 + amount)).clamp(0, 1)
            image = to_rgb(hue + amount if operation == 3 else hue, saturation, value)
    return image


def blurred(image, sigma: float, radius: int = 6):
    """Pictures [B, 3, H, W] with a Gaussian blur, borders reflected."""
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image, (radius, radius, 0, 0), mode="reflect"), taps, groups=3)
    padded = F.pad(image, (0, 0, radius, radius), mode="reflect")
    return F.conv2d(padded, taps.transpose(2, 3), groups=3)


class Training:
    """Student, teacher, frozen encoder, optimiser and a batch of noise of a config."""

    def __init__(self, config: Config):
        torch.manual_seed(config.seed)
        self.config, self.done = config, 0
        self.student = Segmentor(config.model, len(config.data.classes.names)).train()
        stats = input_stats(config.model)
        self.mean, self.std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in stats)
        self.batch = tuple(torch.from_numpy(array) for array in noise(config))

    def in_mode(self, train: bool) -> Training:
        """Itself, with BatchNorm by the batch and dropout, or neither."""
        self.student.train(train)
        return self

    def with_teacher(self) -> Training:
        """Itself in training, with all that a step needs beside the student."""
        self.in_mode(True)
        self.teacher = copy.deepcopy(self.student)
        for module in self.teacher.modules():  # batch statistics, and nothing dropped
            name = type(module).__name__
            module.train("Drop" not in name)
        self.teacher.requires_grad_(False)
        self.frozen = None
        if self.config.method.feature_distance.weight > 0:
            self.frozen = copy.deepcopy(self.student.encoder).eval().requires_grad_(False)
        self.optimizer = self.make_optimizer()
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        return self

    def make_optimizer(self):
        """AdamW: a rate of its own for the decoder, no decay of the encoder's norms."""
        options = self.config.optimizer
        norms = {
            id(parameter)
            for module in self.student.encoder.modules()
            if isinstance(module, nn.LayerNorm)
            for parameter in module.parameters()
        }
        encoder = list(self.student.encoder.parameters())
        rate = options.learning_rate
        return torch.optim.AdamW(
            [
                {"params": [p for p in encoder if id(p) not in norms]},
                {"params": [p for p in encoder if id(p) in norms], "weight_decay": 0.0},
                {
                    "params": list(self.student.decoder.parameters()),
                    "lr": rate * options.decoder_multiplier,
                },
            ],
            lr=rate,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
        )

    def normalised(self, picture):
        """f32[B, 3, H, W] of u8[B, H, W, 3]."""
        return (picture.permute(0, 3, 1, 2).float() - self.mean) / self.std

    @torch.inference_mode()
    def classes(self):
        """Train ids u8[1, H, W] of the first target picture."""
        picture = self.batch[1][:1]
        logits, _ = self.student(self.normalised(picture))
        return upsampled(logits, picture.shape[1:3]).argmax(1).to(torch.uint8)

    def loss(self):
        """The student's cross entropy on the source pictures."""
        source, _, label = self.batch
        logits, _ = self.student(self.normalised(source))
        return cross_entropy(logits, label.long())

    @torch.no_grad()
    def augmented(self, image, *, always: bool = False):
        """Normalised pictures, jittered and blurred as often as the config says, or `always`."""
        options = self.config.method.augment
        if always or torch.rand(()) < options.jitter_probability:
            unit = (image * self.std + self.mean) / 255
            unit = torch.stack([jittered(each, options.jitter_strength) for each in unit])
            image = (unit * 255 - self.mean) / self.std
        if always or torch.rand(()) < options.blur_probability:
            low, high = options.blur_sigma
            sigmas = low + (high - low) * torch.rand(len(image))
            pairs = zip(image, sigmas.tolist(), strict=True)
            image = torch.cat([blurred(each[None], sigma) for each, sigma in pairs])
        return image

    @torch.no_grad()
    def mixed(self, source, label, target, pseudo, weight):
        """(pictures, labels, weights): classes of the source pasted onto the target."""
        mask = class_mask(label)
        return (
            torch.where(mask[:, None], source, target),
            torch.where(mask, label, pseudo),
            torch.where(mask, torch.ones_like(weight), weight),
        )

    @torch.no_grad()
    def masked(self, image):
        """Normalised pictures, augmented; hidden blocks of them are 0, the mean colour."""
        mic = self.config.method.mic
        hide = hidden(len(image), image.shape[2:], mic_block(self.config), mic.ratio)
        return self.augmented(image).masked_fill(hide, 0.0)

    def distance(self, feature, image, label):
        """The weighted mean distance of the last map to the frozen encoder's, over cells of
        things."""
        options, names = self.config.method.feature_distance, self.config.data.classes.names
        assert self.frozen is not None
        with torch.no_grad():
            anchor = self.frozen(image)[-1]
            side = label.shape[2] // feature.shape[3]
            known = torch.where(label == IGNORE, len(names), label)
            share = F.one_hot(known, len(names) + 1).permute(0, 3, 1, 2).float()
            top, cell = F.avg_pool2d(share, side).max(1)
            things = [i for i, name in enumerate(names) if name in options.classes]
            wanted = torch.isin(cell, torch.tensor(things or list(range(len(names)))))
            wanted = wanted & (top >= options.min_share)
        norms = torch.linalg.vector_norm(feature - anchor, dim=1)
        return options.weight * torch.where(wanted, norms, 0.0).sum() / max(int(wanted.sum()), 1)

    def set_rates(self) -> None:
        """The learning rates of this step: a rise, then a linear fall to 0."""
        options, total = self.config.optimizer, self.config.train.steps
        share = min((self.done + 1) / max(options.warmup * total, 1), 1) * (1 - self.done / total)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * max(share, 0)

    def learn(self, image, label, weight=None, *, times: float = 1.0, compared=False) -> float:
        """The loss of a pass, after its gradients were added. compared: with the frozen encoder."""
        logits, maps = self.student(image)
        loss = times * cross_entropy(logits, label, weight)
        if compared:
            loss = loss + self.distance(maps[-1], image, label)
        loss.backward()
        return loss.item()

    def step(self) -> list[float]:
        """One update; the loss of each pass."""
        method = self.config.method
        source, target, label = self.batch
        source, target, label = self.normalised(source), self.normalised(target), label.long()
        average(self.teacher, self.student, self.done, method.ema_decay)
        self.set_rates()
        self.optimizer.zero_grad()
        with torch.no_grad():
            logits, _ = self.teacher(target)
        pseudo, weight = pseudo_label(logits, label.shape[1:], method.threshold)
        del logits
        losses = [self.learn(source, label, compared=self.frozen is not None)]
        image, *judged = self.mixed(source, label, target, pseudo, weight)
        losses.append(self.learn(self.augmented(image), *judged))
        if method.kind == "mic":
            image = self.masked(target)
            losses.append(self.learn(image, pseudo, weight, times=method.mic.weight))
        self.optimizer.step()
        self.done += 1
        return losses
