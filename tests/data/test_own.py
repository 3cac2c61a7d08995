"""A folder of one's own as the target of a config that was written for a published set."""

from pathlib import Path

import downloads
import numpy as np
import pytest
from refusals import refused

from mrm_jax.config import Config, evaluation_domain, has_evaluation
from mrm_jax.data import sources
from mrm_jax.main import load_config
from mrm_jax.options import declared, value_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
GTA = next(path for path in CONFIGS if path.stem == "gta_to_cityscapes")
CAMVID = next(path for path in CONFIGS if path.stem == "camvid_day_to_dusk")


def loaded(config, *flags, say=lambda line: None):
    found = load_config([f"--config={config}", *(f"--config.{flag}" for flag in flags)], say=say)
    assert found is not None
    return found


@pytest.fixture
def mine(tmp_path):
    """Pictures as people keep them."""
    for name in ("a.JPG", "trip/b.jpeg", "trip/day 2/c.webp", "images/d.png"):
        downloads.save_image(tmp_path / "mine" / name, np.zeros((8, 9, 3), np.uint8))
    (tmp_path / "mine/notes.txt").write_text("none")
    return tmp_path / "mine"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_path_of_a_folder_alone_makes_it_the_target_of_every_config(path, mine):
    before = loaded(path)
    config = loaded(path, f"data.target.path={mine}", say=(lines := []).append)
    pictures = sources.open_pictures(config.data.target, field="config.data.target")
    assert sorted(pictures.name(k) for k in range(4)) == ["a", "images/d", "trip/b", "trip/day 2/c"]
    assert not has_evaluation(config)
    assert config.evaluation.selection_pictures > 0
    assert config.data.target.margins == (0, 0, 0, 0)
    assert config.data.source == before.data.source
    assert config.data.target.resize == before.data.target.resize
    assert len(lines) == (path.stem != "folder")  # which was written for such folders
    assert all(str(mine) in line for line in lines)


@pytest.mark.parametrize(
    "part",
    [
        *("leftImg8bit/val/x.png", "gtFine/train/x.json", "town/leftImg8bit/train/ulm/u.png"),
        *("ulm_000000_000019_leftImg8bit.png", "ulm_gtFine_labelIds.png"),
        "leftImg8bit_trainvaltest.zip",
    ],
)
def test_a_folder_with_any_part_of_the_published_layout_is_that_set_or_an_error(mine, part):
    (mine / part).parent.mkdir(parents=True, exist_ok=True)
    (mine / part).write_bytes(b"")
    config = loaded(GTA, f"data.target.path={mine}", say=(lines := []).append)
    assert not lines
    assert config.data.target.images == "leftImg8bit/train"
    assert has_evaluation(config)
    with refused("config.data.target.path"):
        sources.open_pictures(config.data.target, field="config.data.target")


def test_a_published_set_elsewhere_is_trained_on_and_scored_there(tmp_path):
    downloads.cityscapes(tmp_path / "there")
    config = loaded(GTA, f"data.target.path={tmp_path / 'there'}", say=(lines := []).append)
    assert not lines
    assert config.data.target.margins == loaded(GTA).data.target.margins
    assert evaluation_domain(config).path == str(tmp_path / "there")
    assert evaluation_domain(config).images == "leftImg8bit/val"


def test_flags_that_say_where_files_lie_are_obeyed(mine, tmp_path):
    here = f"data.target.path={mine}"
    own = loaded(GTA, here, "data.target.images=trip", "data.target.image_suffix=.jpeg")
    assert own.data.target.images == "trip"
    scored = loaded(GTA, here, f"data.evaluation.path={tmp_path}")
    assert (scored.data.target.images, scored.data.evaluation.labels) == ("", "gtFine/val")
    assert scored.data.evaluation.path == str(tmp_path)
    assert not has_evaluation(loaded(GTA, "data.evaluation.labels=None"))


def test_folders_that_are_missing_or_without_pictures_stay_the_published_set(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        config = loaded(GTA, f"data.target.path={folder}", say=(lines := []).append)
        assert not lines
        assert config.data.target.images == "leftImg8bit/train"


def test_lists_and_labels_are_what_is_camvids_own(mine):
    (mine / "splits").mkdir()
    (mine / "splits/dusk_train.txt").write_text("a")
    assert loaded(CAMVID, f"data.target.path={mine}").data.target.listing


@pytest.mark.parametrize("ending", ["", "None"])
def test_every_optional_field_is_emptied_by_its_flag(ending):
    config = loaded(GTA)
    optional = [path for path, option in declared(Config).items() if option.optional]
    assert len(optional) > 15
    for path in optional:
        if path == "data.source.labels":
            with refused(f"config.{path}", way_out="name their folder"):
                loaded(GTA, f"{path}={ending}")
            continue
        assert value_of(loaded(GTA, f"{path}={ending}"), path) is None, path
    last = loaded(GTA, "data.target.resize=", "data.target.resize=(64,32)")
    assert last.data.target.resize == (64, 32)
    last = loaded(GTA, "data.target.resize=(64,32)", f"data.target.resize={ending}")
    assert last.data.target.resize is None
    assert (
        config.data.source.image_suffix
        == loaded(GTA, "data.source.image_suffix=").data.source.image_suffix
    )
