"""What a log line says of a step."""

import io

from rich.console import Console

from mrm_jax.train.console import Screen


def test_every_loss_of_every_pass_stands_in_the_line_in_the_order_of_the_step():
    losses = [
        *("source/ce_fused", "source/ce_detail", "source/feature_distance", "mixed/ce_fused"),
        *("masked/ce_fused", "masked/ce_detail", "reconstructed/ce_fused", "reconstructed/ce"),
    ]
    out = io.StringIO()
    values = {"grad_norm/encoder": 3.0, **dict.fromkeys(losses, 0.25), "total/loss": 1.5}
    Screen(9, Console(file=out, highlight=False)).metrics(4, values, "2 steps/s")
    line = out.getvalue()
    assert line.startswith("step 4/9  total/loss 1.5  source/ce_fused 0.25")
    assert all(f"{name} 0.25" in line for name in losses)
    assert line.index("mixed/") < line.index("masked/") < line.index("reconstructed/")
    assert "grad_norm" not in line
