"""What the configs that ship say, without building anything."""

from dataclasses import replace

import pytest

from mrm_jax import command, config
from mrm_jax.data.rare_class import open_sampler


@pytest.mark.parametrize("recipe", ["dacs", "dacs,mrm=true", "daformer", "target_only"])
def test_both_configs_of_pretrained_runs_on_camvid_train_alike(recipe):
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
        narrower = replace(pretrained.model.decoder, channels=32)
        assert pair.model == replace(pretrained.model, decoder=narrower)
        assert pair.optimizer == pretrained.optimizer
        mrm = pretrained.method.mrm
        assert pair.method == replace(pretrained.method, mrm=replace(mrm, grid=(8, 12)))


@pytest.mark.parametrize(
    "words",
    [
        *(["quickstart:" + recipe] for recipe in ("daformer", "daformer,mrm=true", "hrda", "vfm")),
        ["quickstart:mic,mrm=true,crop=64x128"],
        ["quickstart:daformer,encoder=mit_b0", "method.feature_distance.weight=0"],
        *(["tiny:" + recipe, "method.feature_distance.weight=0"] for recipe in ("daformer", "mic")),
        ["tiny:vfm"],
        ["benchmark:daformer"],
    ],
    ids=lambda words: words[0],
)
def test_methods_with_rare_class_sampling_find_every_class_in_drawn_scenes(
    words, tmp_path, monkeypatch
):
    """A newcomer names the recipe and nothing else; 40 of the quickstart's 600 scenes tell."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where what was counted is kept
    file, *edits = words
    made = command.load_config([f"--config={file}", *(f"--config.{edit}" for edit in edits)])
    assert made.data.rare_class.enabled
    count = min(40, made.data.source.count)
    data = replace(made.data, source=replace(made.data.source, count=count))
    sampler = open_sampler(replace(made, data=data), say=lambda line: None)
    assert len(sampler.classes) == len(made.data.classes.names)


def test_the_quickstart_compares_with_no_features_unless_an_encoder_may_have_pretrained_ones():
    method = command.load_config(["--config=quickstart:daformer"]).method
    assert (method.feature_distance.weight, method.ema_decay) == (0.0, 0.99)
    named = ["--config=quickstart:daformer,encoder=mit_b0", "--config.model.encoder.weights=b0.pth"]
    method = command.load_config(named).method
    assert (method.feature_distance.weight, method.ema_decay) == (0.005, 0.999)
