"""A run on a few small drawn scenes."""

from mrm_jax import config as options
from mrm_jax.data import labels


def drawn_config(seed=0, steps=6, batch=4, **data):
    """Ten scenes a domain; `data`: what differs in the options of the data."""

    def domain(**given):
        return options.Domain(kind="drawn", count=10, size=(32, 64), **given)

    return options.Config(
        seed=seed,
        data=options.Data(
            **{
                "classes": labels.DRAWN,
                "source": domain(category_limit=0.75),
                "target": domain(look="camera", margins=(2, 3, 0, 0)),
                "evaluation": domain(look="camera", split="val"),
                "crop": (24, 48),
                **data,
            }
        ),
        train=options.Train(steps=steps, batch=batch),
    )
