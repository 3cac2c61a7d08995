"""Options: every mistake is one line that names the field, its value and the way out."""

import dataclasses
import subprocess
import sys

import pytest

from mrm_jax import command, config, options, recipes
from mrm_jax.checks import from_config_dict
from mrm_jax.config import Config
from mrm_jax.data import labels
from mrm_jax.errors import UsageError
from mrm_jax.options import to_config_dict


def valid(**edits) -> Config:
    drawn = config.Domain(kind="drawn")
    data = config.Data(classes=labels.DRAWN, source=drawn, target=drawn, evaluation=drawn)
    return dataclasses.replace(Config(data=data), **edits)


def leaves(group, prefix=""):
    for name, value in vars(group).items():
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_option_is_declared_and_says_what_it_is():
    found = options.declared(Config)
    assert {path: option.default for path, option in found.items()} == dict(leaves(Config()))
    assert all(option.doc for option in found.values())


def test_every_default_lies_in_its_own_range():
    options.check_ranges(Config())


def test_every_option_with_a_range_refuses_what_lies_outside_it():
    """In one line with field, value and range; each end of the range itself is taken."""
    base = Config()
    for path, option in options.declared(Config).items():
        for end, beyond in ((option.low, -1), (option.high, 1)):
            if end is None:
                continue
            single = not isinstance(option.default, tuple)
            for value, taken in ((end, True), (end + beyond, False), (float("nan"), False)):
                edited = options.edited(base, {path: value if single else (value,)})
                if taken:
                    options.check_ranges(edited)
                    continue
                with pytest.raises(UsageError, match=rf"^config\.{path} is .*; it must .*\d\.$"):
                    options.check_ranges(edited)


def test_what_a_group_says_holds_for_the_options_in_it_that_say_nothing_else():
    inner = dataclasses.make_dataclass(
        "Inner",
        [("a", int, options.option(1, "a")), ("b", int, options.option(2, "b", step="traced"))],
    )
    group = options.option(inner(), "Inner.", step="absent", runtime=True)
    outer = dataclasses.make_dataclass("Outer", [("inner", inner, group)])
    found = options.declared(outer)
    assert {path: option.step for path, option in found.items()} == {
        "inner.a": "absent",
        "inner.b": "traced",
    }
    assert all(option.runtime for option in found.values())


def test_a_config_survives_the_way_through_a_config_dict():
    cfg = valid(seed=3)
    assert from_config_dict(to_config_dict(cfg)) == cfg


def test_a_config_survives_the_way_through_json():
    import json

    cfg = valid()
    text = json.dumps(to_config_dict(cfg).to_dict())
    assert from_config_dict(json.loads(text)) == cfg


def test_optional_options_can_be_set_by_flag_although_they_are_empty():
    values = to_config_dict(valid())
    values.data.target.path = "pictures"
    with pytest.raises(TypeError):
        values.data.target.path = 3
    assert from_config_dict(values).data.target.path == "pictures"


def test_runtime_options_are_those_that_change_no_result():
    runtime = {path for path, one in options.declared(Config).items() if one.runtime}
    assert {"train.log_every", "data.workers", "model.unroll", "mesh.devices"} <= runtime
    assert not {"train.steps", "train.batch", "seed", "optimizer.learning_rate"} & runtime


DINOV2 = {"model": {"encoder": dataclasses.asdict(recipes.ENCODERS["dinov2_s14"])}}
NARROW = dataclasses.asdict(recipes.ENCODERS["dinov2_s14"]) | {"dims": (3,), "heads": (1,)}
DINOV2_HRDA = {"model": DINOV2["model"] | {"multires": {"enabled": True}}}
BAD = [
    ({"train": {"stepps": 1}}, "config.train.stepps is not an option. Did you mean 'steps'?"),
    ({"trian": {}}, "config.trian is not an option. Did you mean 'train'?"),
    ({"seed": "0"}, "config.seed is '0'; it must be a whole number."),
    (
        {"model": {"encoder": NARROW, "decoder": {"kind": "vit_light"}}},
        "last map has 3 channels; decoder vit_light needs 4",
    ),
    ({"seed": True}, "config.seed is True; it must be a whole number."),
    ({"seed": -1}, "config.seed is -1"),
    ({"train": {"batch": 0}}, "config.train.batch is 0; it must be at least 1."),
    ({"data": {"crop": (500, 512)}}, "its height 500 is not a multiple of 32"),
    ({"data": {"crop": (32, 512)}, "model": {"encoder": {"sr_ratios": (16, 4, 2, 1)}}}, "below 64"),
    ({"data": {"target": {"count": 0}}}, "config.data.target.count is 0; it must be at least 1."),
    ({"data": {"target": {"size": (16, 64)}}}, "drawn scenes need at least (32, 64)"),
    ({"method": {"mrm": {"grid": (0, 4)}}}, "config.method.mrm.grid is (0, 4)"),
    ({"method": {"mrm": {"heads": 0}}}, "config.method.mrm.heads is 0; it must be at least 1."),
    ({"method": {"augment": {"blur_sigma": (0.0, 1.0)}}}, "from above 0 to at most 2"),
    ({"model": {"encoder": {"heads": (0, 2, 5, 8)}}}, "config.model.encoder.heads is (0, 2, 5, 8)"),
    (
        {"evaluation": {"mode": "slide", "stride": (2000, 512)}},
        "larger than the window (1024, 1024)",
    ),
    ({"evaluation": {"limit": 0}}, "config.evaluation.limit is 0; it must be at least 1."),
    (
        {"evaluation": {"selection_pictures": -1}},
        "config.evaluation.selection_pictures is -1; it must be at least 0.",
    ),
    (
        {"evaluation": {"pick_by": "masked_agreement"}},
        "needs MRM with classes as target; use infomax or agreement, or mrm=true",
    ),
    (
        {"evaluation": {"pick_by": "agreement"}, "method": {"kind": "source_only"}},
        "source_only has no teacher to agree with; use infomax",
    ),
    ({"train": {"batch": 4, "microbatches": 3}}, "which does not divide config.train.batch 4"),
    ({"data": {"source": {"split": "dusk"}}}, "drawn scenes have train and val"),
    ({"data": {"crop": 512}}, "config.data.crop is 512; it must be a tuple"),
    ({"data": {"crop": (512,)}}, "config.data.crop is (512,); it must have 2 entries."),
    ({"data": {"source": {"kind": "folder"}}}, "config.data.source.labels is empty"),
    ({"data": {"source": {"kind": "drwan"}}}, "Did you mean 'drawn'?"),
    ({"data": {"source": {"kind": "drawn", "raw_ids": ((1,),)}}}, "1 rows for 17 classes"),
    ({"method": {"kind": "dasc"}}, "Did you mean 'dacs'?"),
    ({"method": {"kind": "source_only", "mrm": {"enabled": True}}}, "needs a teacher"),
    ({"method": {"kind": "dacs", "augmented_source": True}}, "control for source_only"),
    ({"method": {"mrm": {"enabled": True, "heads": 3}}}, "not a multiple of 3 heads"),
    (
        {"method": {"feature_distance": {"weight": 0.1, "checkpoint": "runs/first"}}},
        "feature_distance.source=checkpoint",
    ),
    (
        {"model": {"multires": {"enabled": True}, "decoder": {"kind": "deeplabv2"}}},
        "offset_multiple is 8; where a detail crop starts has to be a multiple of the decoder's "
        "stride, 32",
    ),
    ({"method": {"kind": "mic", "mic": {"hide": "patches"}}}, "one of 'pixels', 'tokens'"),
    (
        {"method": {"kind": "mic", "mic": {"hide": "tokens"}}},
        "config.method.mic.hide is tokens, but encoder kind mit has no mask token; set "
        "hide=pixels, or take encoder kind dinov2.",
    ),
    (
        {"method": {"kind": "mic", "mic": {"hide": "tokens", "block": 32}}, **DINOV2},
        "config.method.mic.block is 32, and config.method.mic.hide=tokens hides the encoder's own "
        "patches; leave block empty",
    ),
    (
        {"method": {"kind": "mic", "mic": {"hide": "tokens"}}, **DINOV2_HRDA},
        "config.model.multires.enabled is True, but encoder kind dinov2 does not go with HRDA",
    ),
    ({"method": {"mrm": {"ramp": -0.1}}}, "config.method.mrm.ramp is -0.1; it must lie in 0..1."),
    ({"method": {"mrm": {"schedule": "rises"}}}, "Did you mean 'rise'?"),
    ({"method": {"mrm": {"image": "plain"}}}, "must be one of 'clean', 'augmented'"),
    ({"optimizer": {"layer_decay": 0.0}}, "config.optimizer.layer_decay is 0.0; it must lie in"),
    ({"optimizer": {"layer_decay": 1.1}}, "config.optimizer.layer_decay is 1.1; it must lie in"),
    ({"data": {"scale": (1.1, 0.9)}}, "config.data.scale is (1.1, 0.9); the smaller one is first"),
    ({"method": {"threshold": 1.5}}, "config.method.threshold is 1.5; it must lie in 0..1."),
    ({"model": {"encoder": {"depths": (1, 2)}}}, "give as many entries"),
    ({"model": {"encoder": {"heads": (1, 3, 5, 8)}}}, "not a multiple of its 3 attention heads"),
    ({"model": {"dtype": "float16"}}, "must be one of 'float32', 'bfloat16'"),
    ({"evaluation": {"classes": ("rode",)}}, "Did you mean 'road'?"),
]


@pytest.mark.parametrize(("edit", "message"), BAD, ids=lambda v: str(v)[:40])
def test_a_mistake_is_answered_with_the_field_and_the_way_out(edit, message):
    def merge(base, change):
        for key, value in change.items():
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                merge(base[key], value)
            else:
                base[key] = value
        return base

    values = merge(to_config_dict(valid()).to_dict(), edit)
    with pytest.raises(UsageError) as caught:
        from_config_dict(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_turns_drawn_scenes_into_the_pictures_of_a_folder():
    values = to_config_dict(valid())
    values.data.source.path, values.data.target.path = "game", "street"
    data = from_config_dict(values).data
    assert (data.source.kind, data.source.images, data.source.labels) == (
        "folder",
        "images",
        "labels",
    )
    assert (data.target.kind, data.target.images, data.target.labels) == ("folder", "", None)
    assert data.evaluation.kind == "drawn"


def test_target_only_trains_on_the_labels_of_the_target():
    cfg = recipes.target_only(valid())
    assert config.source_domain(cfg) == cfg.data.target
    assert config.source_domain(recipes.dacs(cfg)) == cfg.data.source


def test_the_evaluation_set_lies_below_the_target_unless_it_has_a_path():
    cfg = valid()
    target = dataclasses.replace(cfg.data.target, path="there")
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, target=target))
    assert config.evaluation_domain(cfg).path == "there"
    own = dataclasses.replace(cfg.data.evaluation, path="here")
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, evaluation=own))
    assert config.evaluation_domain(cfg).path == "here"


def test_options_load_without_jax():
    code = "import sys; from mrm_jax import config, recipes, main; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


RECIPES = [
    ("dacs", lambda c: c.method.kind == "dacs" and not c.method.mrm.enabled),
    ("dacs,mrm=true", lambda c: c.method.mrm.enabled),
    ("source_augmented", lambda c: c.method.augmented_source),
    ("dacs,encoder=mit_b2", lambda c: c.model.encoder.depths == (3, 4, 6, 3)),
    ("dacs,encoder=mit_b2,decoder=segformer", lambda c: c.model.decoder.channels == 768),
    ("dacs,crop=256x512", lambda c: c.data.crop == (256, 512)),
    ("crop=256", lambda c: c.data.crop == (256, 256)),
    (None, lambda c: c.method.kind == "source_only"),
    ("daformer", lambda c: c.method.feature_distance.weight == 0.005 and c.data.rare_class.enabled),
    ("daformer", lambda c: c.method.ema_decay == 0.999 and not c.model.multires.enabled),
    ("hrda", lambda c: c.method.kind == "hrda" and c.model.multires.enabled),
    ("mic,mrm=true", lambda c: c.method.kind == "mic" and c.model.multires.enabled),
    ("vfm", lambda c: c.method.kind == "mic" and c.method.teacher_flip and c.train.batch == 8),
    ("vfm", lambda c: c.data.crop == (512, 512) and c.evaluation.mode == "whole"),
    ("vfm", lambda c: c.model.encoder.dims == (768,) and c.model.encoder.resize == "1.1"),
    ("vfm,encoder=dinov2_l14", lambda c: c.model.encoder.resize == "1.1"),
    ("vfm,encoder=dinov2_l14", lambda c: c.model.encoder.depths == (24,)),
    ("vfm,encoder=mit_b0", lambda c: c.model.encoder.resize == "native"),
    ("dacs,encoder=dinov2_s14,decoder=vit_light", lambda c: c.model.encoder.resize == "native"),
    ("dacs,mic=true", lambda c: c.method.kind == "mic" and c.method.ema_decay == 0.99),
    ("dacs,hrda=true", lambda c: c.method.kind == "dacs" and c.model.multires.enabled),
    ("dacs,encoder=resnet101,decoder=deeplabv2", lambda c: c.model.decoder.dilations == (6, 12)),
]


def test_vfm_s_crops_fit_into_its_pictures_as_the_config_s_own_do():
    base = valid()
    box = dataclasses.replace(base.data.source, resize=(256, 192))
    base = dataclasses.replace(
        base, data=dataclasses.replace(base.data, source=box, crop=(160, 208))
    )
    made = recipes.vfm(base)
    assert made.data.source.resize == (1536, 384)  # a short side of 384, whatever the long one
    assert made.data.crop == made.evaluation.window == (320, 416)
    assert made.evaluation.stride == (160, 208)
    assert made.data.rare_class.crop_share == 2.0


def test_hrda_doubles_the_boxes_that_pictures_are_fitted_into_and_all_that_follows():
    base = valid()
    box = dataclasses.replace(base.data.source, resize=(1280, 720))
    base = dataclasses.replace(
        base, data=dataclasses.replace(base.data, source=box, crop=(512, 512))
    )
    made = recipes.hrda(base)
    assert made.data.source.resize == (2560, 1440)
    assert made.data.crop == (1024, 1024)
    assert config.detail_crop(made) == (512, 512)
    assert made.data.rare_class.crop_share == 2.0
    assert (made.evaluation.mode, made.evaluation.window) == ("slide", (1024, 1024))
    assert made.evaluation.stride == (512, 512)
    assert config.mic_block(made) == 64
    assert config.mic_block(recipes.daformer(base)) == 32
    smaller = recipes.with_crop(made, "512")
    assert (smaller.evaluation.window, smaller.evaluation.stride) == ((512, 512), (256, 256))
    same = recipes.hrda(valid())
    assert same.data.crop == valid().data.crop


def test_weights_stay_with_the_encoder_that_they_were_named_for():
    base = valid()
    named = dataclasses.replace(recipes.ENCODERS["efficientnet_lite0"], weights="its.pth")
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, encoder=named))
    assert recipes.apply(base, "dacs,encoder=efficientnet_lite0").model.encoder == named
    assert recipes.apply(base, "dacs,decoder=segformer").model.encoder.weights == "its.pth"
    for other in ("efficientnet_lite1", "mit_b0", recipes.SMALL):
        assert recipes.apply(base, f"dacs,encoder={other}").model.encoder.weights is None


@pytest.mark.parametrize("other", ["daformer", "deeplabv2_full", "segformer"])
def test_a_segformer_head_is_as_wide_as_it_is_published_with_each_encoder(other):
    """In any order of the words, and from any named encoder and decoder of the file."""
    published = {"mit_b0": 256, "mit_b1": 256, "mit_b2": 768, "mit_b5": 768, "resnet50": 768}
    for encoder, channels in published.items():
        for before in ("mit_b0", "mit_b3", "pvt_v2_b0"):
            base = recipes.apply(valid(), f"encoder={before},decoder={other}")
            for words in (
                f"encoder={encoder},decoder=segformer",
                f"decoder=segformer,encoder={encoder}",
            ):
                made = recipes.apply(base, f"dacs,{words}").model
                assert made.decoder == config.Decoder("segformer", channels=channels)
    base = recipes.apply(valid(), "encoder=mit_b1")
    named = dataclasses.replace(base.model.encoder, weights="its.pth", drop_path=0.0)
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, encoder=named))
    assert recipes.apply(base, "decoder=segformer").model.decoder.channels == 256


def test_the_width_of_a_head_that_is_written_down_stays():
    words = ["--config=quickstart:dacs,encoder=mit_b0,decoder=segformer"]
    assert command.load_config(words).model.decoder.channels == 256
    words = [*words, "--config.model.decoder.channels=768"]
    assert command.load_config(words).model.decoder.channels == 768
    own = config.Decoder("segformer", channels=96)
    base = dataclasses.replace(valid(), model=config.Model(decoder=own))
    assert recipes.apply(base, "dacs,encoder=mit_b0").model.decoder == own


def test_the_small_network_is_that_of_the_quickstart_with_its_rates_wherever_it_is_asked_for():
    quickstart, folder = (
        command.load_config([f"--config={name}:dacs,mrm=true,encoder=small"])
        for name in ("quickstart", "folder")
    )
    assert quickstart == command.load_config(["--config=quickstart"])
    assert folder.model == quickstart.model
    assert folder.optimizer == quickstart.optimizer
    grids = {"grid": quickstart.method.mrm.grid}
    assert dataclasses.replace(folder.method.mrm, **grids) == quickstart.method.mrm
    # A teacher of four narrow stages and an optimiser of a fresh network.
    assert quickstart.model.encoder.dims == (16, 32, 48, 64)
    assert quickstart.optimizer.learning_rate == 2e-3


@pytest.mark.parametrize("recipe", ["", "daformer", "hrda", "mic", "daformer,mrm=true,crop=256"])
def test_pictures_of_ones_own_start_from_weights_that_come_with_pip(recipe):
    made = command.load_config([f"--config=folder:{recipe}"])
    assert made.model.encoder.weights == "package://efficientnet_lite0"
    assert made.optimizer == config.Optimizer()  # the rates of pretrained encoders
    compares = recipe.partition(",")[0] in ("daformer", "hrda", "mic")
    assert (made.method.feature_distance.weight > 0) == compares


@pytest.mark.parametrize(("text", "holds"), RECIPES, ids=[str(text) for text, _ in RECIPES])
def test_the_text_after_the_colon_edits_the_config(text, holds):
    assert holds(recipes.apply(valid(), text, default="source_only"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dasc", "Did you mean 'dacs'?"),
        ("dacs,mrn=true", "Did you mean 'mrm'?"),
        ("dacs,mrm=yes", "write mrm=true or mrm=false"),
        ("dacs,mit_b2", "after the recipe come key=value pairs"),
        ("dacs,encoder=mit_b9", "Did you mean 'mit_b"),
        ("dacs,encoder=smal", "Did you mean 'small'?"),
        ("dacs,crop=12y", "write crop=512 or crop=512x1024"),
        ("source_only,mic=true", "needs a teacher, and source_only has none"),
        ("mic,mic=false", "name hrda instead"),
    ],
)
def test_an_unknown_word_after_the_colon_is_named(text, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        recipes.apply(valid(), text)


def test_nearest_stays_silent_when_nothing_is_near():
    assert options.nearest("zzzz", ["steps", "batch"]) == ""
