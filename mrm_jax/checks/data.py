"""Classes, domains and rare class sampling."""

from __future__ import annotations

from mrm_jax.checks.require import require_at, require_value
from mrm_jax.config import Config, source_domain
from mrm_jax.errors import UsageError
from mrm_jax.options import nearest


def check_data(config: Config) -> None:
    """Raises UsageError: tables and domains that do not fit each other."""
    data, classes = config.data, config.data.classes
    count = len(classes.names)
    require_at(
        2 <= count <= 255,
        "config.data.classes.names",
        f" has {count} classes; 2 to 255 are possible.",
    )
    require_at(
        len(classes.colours) == count,
        "config.data.classes.colours",
        f" has {len(classes.colours)} entries for {count} classes",
        "give one each.",
    )
    for name in ("source", "target", "evaluation"):
        ids = getattr(data, name).raw_ids
        require_at(
            len(ids) in (0, count),
            f"config.data.{name}.raw_ids",
            f" has {len(ids)} rows for {count} classes",
            "give one row a class or none.",
        )
    require_value(
        data.scale[0] <= data.scale[1],
        "config.data.scale",
        data.scale,
        "; the smaller one is first.",
    )
    where = "target" if config.method.kind == "target_only" else "source"
    require_at(
        source_domain(config).kind == "drawn" or source_domain(config).labels is not None,
        f"config.data.{where}.labels",
        f" is empty, but {config.method.kind} trains on labels",
        "name their folder.",
    )
    for name in ("source", "target", "evaluation"):
        domain = getattr(data, name)
        require_value(
            domain.kind != "drawn" or (domain.size[0] >= 32 and domain.size[1] >= 64),
            f"config.data.{name}.size",
            domain.size,
            "; drawn scenes need at least (32, 64).",
        )
        require_value(
            domain.kind != "drawn" or domain.split in ("train", "val"),
            f"config.data.{name}.split",
            domain.split,
            "; drawn scenes have train and val.",
        )
    window, step = config.evaluation.window, config.evaluation.stride
    require_value(
        config.evaluation.mode == "whole" or (step[0] <= window[0] and step[1] <= window[1]),
        "config.evaluation.stride",
        step,
        f", larger than the window {window}, which leaves gaps.",
    )
    rows = {"classes": config.evaluation.classes}
    for row in config.evaluation.also:
        require_at(
            len(row) > 1, "config.evaluation.also", f" holds {row}", "give a name and its classes."
        )
        rows["also"] = (*rows.get("also", ()), *row[1:])
    for name, counted in rows.items():
        unknown = [c for c in counted if c not in classes.names]
        if unknown:
            hint = nearest(unknown[0], classes.names)
            raise UsageError.at(
                f"config.evaluation.{name}", f" names '{unknown[0]}', which is no class.{hint}"
            )


def check_rare_class(config: Config) -> None:
    """Raises UsageError: thresholds that no crop can meet."""
    options, (height, width) = config.data.rare_class, config.data.crop
    if not options.enabled:
        return
    name = "config.data.rare_class"
    if options.min_share is not None:
        share = options.min_share
        require_value(share < 1, f"{name}.min_share", share, "", "it must lie in 0..1, below 1.")
        return
    needed = options.min_pixels * options.crop_share
    require_at(
        needed < height * width,
        name,
        f": min_pixels {options.min_pixels} times crop_share {options.crop_share:g} is "
        f"not below the {height * width} px of config.data.crop {config.data.crop}",
        "set min_share to a share of the crop, say 0.006.",
    )
