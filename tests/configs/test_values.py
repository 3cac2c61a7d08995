"""What the configs that ship say, without building anything."""

from dataclasses import replace

import pytest

from mrm_jax import command, config


@pytest.mark.parametrize("recipe", ["dacs", "dacs,mrm=true", "daformer", "target_only"])
def test_both_configs_of_pretrained_runs_on_camvid_train_one_network_at_one_rate(recipe):
    pretrained, *pairs = (
        command.load_config([f"--config={name}:{recipe}{more}"])
        for name, more in (
            ("camvid_pretrained", ""),
            ("evidence", ""),
            ("evidence", ",pair=dusk"),
        )
    )
    assert pretrained.model.encoder.weights == "package://efficientnet_lite0"
    assert pretrained.model.decoder == config.Decoder(channels=64, dilations=(1, 3, 6))
    assert pretrained.optimizer == config.Optimizer(learning_rate=3e-4, decoder_multiplier=10.0)
    for pair in pairs:
        assert pair.model == pretrained.model
        assert pair.optimizer == pretrained.optimizer
        mrm = pretrained.method.mrm
        assert pair.method == replace(pretrained.method, mrm=replace(mrm, grid=(8, 12)))
