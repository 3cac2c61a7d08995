import json
import os
import pickle
import stat
from dataclasses import replace

import cv2
import downloads
import numpy as np
import pytest
from drawn_config import drawn_config
from refusals import refused

from mrm_jax import config as options
from mrm_jax.checks import check_config
from mrm_jax.data import class_statistics as counting
from mrm_jax.data import pipeline, rare_class, sources, transforms
from mrm_jax.errors import UsageError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Counts of drawn scenes go to a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mrm_jax"


def _rare(**given):
    return options.RareClass(**{"enabled": True, "min_share": 0.01, "on_missing": "warn", **given})


def _drawn(rare=None, steps=3, **given):
    return drawn_config(rare_class=rare or _rare(), steps=steps, **given)


def _of(names, arrays, rare, crop=(32, 32), **domain):
    """A config whose classes are `names`, and the statistics of the given label maps."""
    config = options.Config(
        data=options.Data(
            classes=options.Classes(names=names, colours=((0, 0, 0),) * len(names)),
            source=options.Domain(labels="labels", **domain),
            crop=crop,
            rare_class=rare,
        )
    )
    counts = [np.bincount(a.ravel(), minlength=256)[: len(names)] for a in arrays]
    sizes = [a.shape for a in arrays]
    return config, counting.Statistics(np.array(counts), np.array(sizes))


def _folder(root, arrays, names=("road", "rider"), **rare):
    """A source folder with these label maps and plain pictures, as a config."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for k, label in enumerate(arrays):
        cv2.imwrite(str(root / "images" / f"{k}.png"), np.full((*label.shape, 3), 40 * k, np.uint8))
        cv2.imwrite(str(root / "labels" / f"{k}.png"), label)
    given = {"min_share": None, "min_pixels": 50, "on_missing": "error"}
    return options.Config(
        data=options.Data(
            classes=options.Classes(names=names, colours=((0, 0, 0),) * len(names)),
            source=options.Domain(path=str(root), images="images", labels="labels"),
            target=options.Domain(path=str(root), images="images"),
            crop=(32, 32),
            rare_class=_rare(**{**given, **rare}),
        ),
        train=options.Train(steps=4, batch=2),
    )


def _label(height=40, width=80, rider=0, value=0):
    """A map of `value` with a block of `rider` px of class 1 in its last columns."""
    label = np.full((height, width), value, np.uint8)
    label.T[label.shape[1] - rider // height :] = 1
    return label


# Class frequencies of GTA5 (5 decimals) and what the reference's log of a training run says.
GTA = (0.36144, 0.09329, 0.19034, 0.02078, 0.00713, 0.01193, 0.00151, 0.00091, 0.08554, 0.02413)
GTA += (0.15232, 0.00408, 0.00034, 0.02827, 0.01268, 0.00415, 0.00073, 0.00035, 0.00006)
LOGGED_CLASSES = (18, 12, 17, 16, 7, 6, 11, 15, 4, 5, 14, 3, 9, 13, 8, 1, 10, 2, 0)
LOGGED = (0.119714, 0.116375, 0.116250, 0.111966, 0.109988, 0.103560, 0.0800773, 0.0795737)
LOGGED += (0.0590534, 0.0365314, 0.0338807, 0.0150848, 0.0107839, 0.00712813, 2.32090e-5)
LOGGED += (1.06940e-5, 2.92121e-8, 6.51986e-10, 2.41906e-17)


def test_the_probabilities_are_those_of_the_reference_on_gta5():
    pixels = np.round(np.array(GTA) * 5e10).astype(np.int64)
    classes, shares = rare_class.probabilities(pixels, 0.01)
    assert tuple(classes) == LOGGED_CLASSES
    assert shares.dtype == np.float32
    # A frequency rounded to 5 decimals moves a probability by up to exp(5e-6 / 0.01).
    np.testing.assert_allclose(shares, LOGGED, rtol=2e-3)


def test_a_class_that_never_occurs_has_no_probability():
    classes, shares = rare_class.probabilities(np.array([900, 0, 100]), 1.0)
    np.testing.assert_array_equal(classes, [2, 0])
    expected = np.exp([0.9, 0.1]) / np.exp([0.9, 0.1]).sum()
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


def test_classes_and_pictures_are_drawn_as_often_as_the_probabilities_say():
    arrays = [_label(rider=400), _label(rider=800), _label(), _label(value=2)]
    config, statistics = _of(
        ("road", "rider", "sky"), arrays, _rare(min_share=None, min_pixels=100, temperature=0.5)
    )
    sampler = rare_class.make_sampler(config, statistics)
    draws = [sampler.draw(np.random.default_rng((3, n))) for n in range(4000)]
    total = statistics.counts.sum(0)
    weights = np.exp((1 - total / total.sum()) / 0.5)
    expected = weights / weights.sum()
    found = np.bincount([d.class_id for d in draws], minlength=3) / len(draws)
    # Four standard deviations of a binomial share.
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)).all()
    riders = np.bincount([d.picture for d in draws if d.class_id == 1], minlength=4)
    assert (riders[2:] == 0).all()
    assert abs(riders[0] - riders[1]) < 4 * np.sqrt(riders.sum())
    assert {d.picture for d in draws if d.class_id == 2} == {3}


def test_a_picture_counts_for_a_class_only_with_more_pixels_than_the_threshold():
    arrays = [_label(rider=120), _label(rider=160)]
    config, statistics = _of(("road", "rider"), arrays, _rare(min_share=None, min_pixels=120))
    sampler = rare_class.make_sampler(config, statistics)
    assert list(sampler.classes) == [1, 0]
    assert [list(pictures) for pictures in sampler.pictures] == [[1], [0, 1]]
    assert sampler.crop_pixels == 60


def test_a_threshold_as_share_of_the_crop_counts_pixels_at_training_size():
    # 40 x 80 px become 20 x 40: a quarter of the pixels. 0.05 of a 32 x 32 crop is 51.2 px.
    arrays = [_label(rider=200), _label(rider=240)]
    config, statistics = _of(("road", "rider"), arrays, _rare(min_share=0.05), resize=(40, 20))
    sampler = rare_class.make_sampler(config, statistics)
    assert list(sampler.pictures[0]) == [1]
    assert sampler.crop_pixels == pytest.approx(51.2)


def test_a_class_without_a_picture_is_named_as_an_error_or_left_out_with_a_warning():
    arrays = [_label(rider=80), _label()]
    names = ("road", "rider", "train")
    config, statistics = _of(names, arrays, _rare(min_share=None, on_missing="error"))
    config = replace(
        config, data=replace(config.data, rare_class=replace(config.data.rare_class, min_pixels=90))
    )
    with pytest.raises(UsageError, match=r"90 px of rider \(at most 80\), train \(none\); lower m"):
        rare_class.make_sampler(config, statistics)
    warn = replace(config.data.rare_class, on_missing="warn")
    told = []
    sampler = rare_class.make_sampler(
        replace(config, data=replace(config.data, rare_class=warn)), statistics, warn=told.append
    )
    assert len(told) == 1
    assert "rider (at most 80), train (none); left out" in told[0]
    assert list(sampler.classes) == [0]
    assert sampler.draw(np.random.default_rng(0)).class_id == 0
    # With the temperature of 0.01 the rider's weight is e^95 times the road's: no underflow to 0.
    np.testing.assert_array_equal(sampler.probabilities, [1])


@pytest.mark.parametrize("on_missing", ["error", "warn"])
def test_labels_that_are_ignored_everywhere_are_an_error(on_missing):
    config, statistics = _of(("a", "b"), [_label(value=255)] * 2, _rare(on_missing=on_missing))
    with pytest.raises(UsageError, match=r"config\.data\.source: its 2 labels hold no class"):
        rare_class.make_sampler(config, statistics)


def test_a_threshold_that_no_class_reaches_is_an_error_even_where_missing_ones_are_left_out():
    config, statistics = _of(("a", "b"), [_label()], _rare(min_share=None, min_pixels=10**6))
    with pytest.raises(UsageError, match="nothing is left to draw; lower min_pixels"):
        rare_class.make_sampler(config, statistics)


def _counting_places(monkeypatch, maps):
    """A label of `maps` side by side, and the calls so far of the draw of crops, which then takes
    one after the other."""
    calls = []

    def place(label, rng, **_):
        at = min(len(calls), len(maps) - 1)
        calls.append(1)
        height, width = maps[0].shape
        return transforms.Place(transforms.Box(0, at * width, height, width), False)

    monkeypatch.setattr(transforms, "choose_place", place)
    return np.hstack(maps), calls


@pytest.mark.parametrize(
    ("held", "tries", "expected"),
    [([5], 10, 11), ([5], 0, 1), ([6], 10, 1), ([0, 5, 6, 9], 10, 3), ([0, 1, 2], 2, 3)],
)
def test_a_crop_is_made_again_until_it_holds_more_than_the_threshold(
    held, tries, expected, monkeypatch
):
    maps = [np.array([[1] * n + [0] * (20 - n)], np.uint8) for n in held]
    whole, calls = _counting_places(monkeypatch, maps)
    _, label = transforms.augment_source_with(
        np.zeros((*whole.shape, 3), np.uint8),
        whole,
        np.random.default_rng(0),
        class_id=1,
        more_than=5,
        tries=tries,
        crop=(1, 20),
        max_ratio=1.0,
        flip=0.0,
    )
    assert len(calls) == expected
    np.testing.assert_array_equal(label, maps[min(expected, len(maps)) - 1])


def test_a_crop_share_of_zero_takes_any_crop(monkeypatch):
    config, statistics = _of(("a", "b"), [_label(rider=400)], _rare(min_share=None, crop_share=0.0))
    data = replace(config.data, rare_class=replace(config.data.rare_class, min_pixels=9))
    sampler = rare_class.make_sampler(replace(config, data=data), statistics)
    empty = np.zeros((4, 4), np.uint8)
    _, calls = _counting_places(monkeypatch, [empty])
    transforms.augment_source_with(
        np.zeros((4, 4, 3), np.uint8),
        empty,
        np.random.default_rng(0),
        class_id=1,
        more_than=sampler.crop_pixels,
        tries=sampler.tries,
        crop=(4, 4),
        max_ratio=1.0,
        flip=0.0,
    )
    assert len(calls) == 1


def test_crops_hold_the_class_they_were_drawn_for(tmp_path):
    # The rider fills the last 6 of 200 columns: a plain 32 px crop rarely shows any of it.
    config = _folder(tmp_path / "set", [_label(40, 200, rider=240)], temperature=0.001, tries=500)
    samples = pipeline.TrainingSamples(config)
    held = [int((samples(n)["source_label"] == 1).sum()) for n in range(20)]
    # 50 * 0.5 px asked for: at most 1 in e^900 draws is for the road.
    assert min(held) > 25
    plain = replace(config, data=replace(config.data, rare_class=options.RareClass()))
    samples = pipeline.TrainingSamples(plain)
    assert max(int((samples(n)["source_label"] == 1).sum()) for n in range(3)) <= 25


def test_without_rare_class_sampling_every_sample_is_what_it_always_was():
    config = _drawn(rare=options.RareClass())
    data = config.data
    pictures = sources.open_labelled(data.source, downloads.table(17), field="x")
    samples = pipeline.TrainingSamples(config)
    for number in range(12):
        # The streams are numbers on purpose: they are the order that earlier runs had.
        order = np.random.default_rng((0, 1, 1, number // 10)).permutation(10)
        image, label = transforms.augment_source(
            *sources.read_pair(pictures, int(order[number % 10])),
            np.random.default_rng((0, 1, 2, number)),
            crop=data.crop,
            max_ratio=0.75,
            flip=0.5,
        )
        np.testing.assert_array_equal(samples(number)["source_image"], image)
        np.testing.assert_array_equal(samples(number)["source_label"], label)


def test_rare_class_sampling_leaves_the_target_alone():
    with_it, without = (
        pipeline.TrainingSamples(_drawn(rare=rare)) for rare in (_rare(), options.RareClass())
    )
    source_differs = False
    for number in range(6):
        ours, theirs = with_it(number), without(number)
        np.testing.assert_array_equal(ours["target_image"], theirs["target_image"])
        np.testing.assert_array_equal(ours["target_valid"], theirs["target_valid"])
        source_differs |= bool((ours["source_image"] != theirs["source_image"]).any())
    assert source_differs


def _arrays(batch):
    return batch.source.image, batch.source.label, batch.target.image, batch.index


def test_steps_hosts_workers_and_the_moment_of_counting_change_no_batch(cache_folder):
    whole = list(pipeline.train_batches(_drawn()))
    assert len(list(cache_folder.iterdir())) == 1  # what follows reads the kept counts
    hosts = [pipeline.train_batches(_drawn(), process_index=h, process_count=2) for h in range(2)]
    workers = pipeline.train_batches(_drawn(workers=2))
    for batch, first, second, other in zip(whole, *hosts, workers, strict=True):
        for array, a, b, c in zip(*map(_arrays, (batch, first, second, other)), strict=True):
            np.testing.assert_array_equal(array, np.concatenate([a, b]))
            np.testing.assert_array_equal(array, c)
    late = pipeline.train_batches(_drawn(), start_step=2)
    for array, expected in zip(_arrays(next(late)), _arrays(whole[2]), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_the_seed_decides_classes_and_pictures():
    sampler = rare_class.open_sampler(_drawn())
    assert sampler is not None
    first, second = (
        [sampler.draw(np.random.default_rng((s, 1, 3, n))) for n in range(30)] for s in (0, 1)
    )
    assert first != second
    again = pickle.loads(pickle.dumps(sampler))
    assert [again.draw(np.random.default_rng((0, 1, 3, n))) for n in range(30)] == first


def test_the_oracle_counts_the_labels_of_its_target(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    config = replace(
        config,
        data=replace(config.data, source=options.Domain(), target=config.data.source),
        method=options.Method(kind="target_only"),
    )
    sampler = rare_class.open_sampler(config)
    assert sampler is not None
    assert list(sampler.classes) == [1, 0]


# --- the file that keeps the counts -------------------------------------------------------------


def _count(config, told=None):
    source = config.data.source
    pictures = sources.open_labelled(source, downloads.table(2), field="config.data.source")
    say = [].append if told is None else told.append
    return counting.class_statistics(pictures, source, 2, field="config.data.source", say=say)


def _kept(root):
    return list(root.glob("class_statistics-*.json"))


def test_labels_are_counted_at_stored_size_after_mapping(tmp_path):
    config = _folder(tmp_path / "set", [_label(40, 80, rider=400, value=7), _label(30, 50, 0, 255)])
    source = replace(config.data.source, raw_ids=((7,), (1,)), resize=(20, 10))
    statistics = _count(replace(config, data=replace(config.data, source=source)))
    np.testing.assert_array_equal(statistics.counts, [[2800, 400], [0, 0]])
    np.testing.assert_array_equal(statistics.sizes, [[40, 80], [30, 50]])


def test_counts_are_kept_in_the_root_and_read_from_there(tmp_path, monkeypatch):
    config = _folder(tmp_path / "set", [_label(rider=400), _label(rider=80)])
    told = []
    first = _count(config, told)
    (kept,) = _kept(tmp_path / "set")
    assert "counting the pixels of 2 labels" in told[0]
    assert str(kept) in told[1]
    monkeypatch.setattr(sources.FolderLabelled, "label", None)  # no label is opened again
    second = _count(config, told)
    assert len(told) == 2
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_long_count_tells_how_far_it_is(tmp_path, monkeypatch):
    config = _folder(tmp_path / "set", [_label(rider=400), _label(rider=80)])
    monkeypatch.setattr(counting, "PROGRESS_SECONDS", 0.0)
    told = []
    _count(config, told)
    assert told[1].startswith("class statistics: 1 of 2 labels, about 0 s left")
    assert told[2].startswith("class statistics: 2 of 2 labels, about 0 s left")


def test_a_changed_label_is_counted_again_in_the_same_file(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400), _label(rider=80)])
    _count(config)
    path = tmp_path / "set" / "labels" / "1.png"
    before = path.stat()
    cv2.imwrite(str(path), _label(rider=800))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # coarse clocks
    assert _count(config).counts[1, 1] == 800
    assert len(_kept(tmp_path / "set")) == 1


def test_another_label_map_has_a_file_of_its_own(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    assert list(_count(config).counts[0]) == [2800, 400]
    swapped = replace(config.data.source, raw_ids=((1,), (0,)))
    assert list(_count(replace(config, data=replace(config.data, source=swapped))).counts[0]) == [
        400,
        2800,
    ]
    assert len(_kept(tmp_path / "set")) == 2
    assert list(_count(config).counts[0]) == [2800, 400]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"0": ', '"0": 9999999'),
        lambda text: text.replace('"pixels"', '"pixel"'),
        lambda text: text.replace('"1": 400', '"17": 400'),
        lambda text: text.replace('"1": 400', '"-1": 400'),
        lambda text: text.replace('"1": 400', '"1": 400.5'),
        lambda text: text.replace('"1": 400', '"1": true'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_file_is_made_again_with_one_line(damage, tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    first = _count(config)
    (kept,) = _kept(tmp_path / "set")
    whole = kept.read_text()
    kept.write_text(damage(whole))
    assert kept.read_text() != whole
    told = []
    second = _count(config, told)
    assert [line for line in told if "is damaged" in line] == [
        f"class statistics: {kept} is damaged; counting again."
    ]
    np.testing.assert_array_equal(first.counts, second.counts)
    assert json.loads(kept.read_text()) == json.loads(whole)


def test_a_root_that_cannot_be_written_leaves_the_counts_in_the_users_cache(
    tmp_path, cache_folder, monkeypatch
):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    _refuse_writing(monkeypatch, below=tmp_path / "set")
    first = _count(config)
    assert not _kept(tmp_path / "set")
    assert len(_kept(cache_folder)) == 1
    told = []
    np.testing.assert_array_equal(_count(config, told).counts, first.counts)
    assert told == []


def test_where_nothing_can_be_written_the_counts_are_right_and_said_not_to_be_kept(
    tmp_path, monkeypatch
):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    _refuse_writing(monkeypatch, below=tmp_path)
    told = []
    assert list(_count(config, told).counts[0]) == [2800, 400]
    assert "not kept" in told[-1]


def _refuse_writing(monkeypatch, below):
    # A mode without write permission would not stop a test that runs as root.
    write = counting.write_text

    def refusing(path, text):
        if path.is_relative_to(below):
            raise PermissionError(13, "Permission denied", str(path))
        write(path, text)

    monkeypatch.setattr(counting, "write_text", refusing)


def test_the_file_can_be_read_by_everybody_who_may_read_the_folder(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    _count(config)
    (kept,) = _kept(tmp_path / "set")
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(kept.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"images", "labels", kept.name}


def test_a_label_that_cannot_be_read_is_named_or_not_counted(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400), _label(rider=400)])
    (tmp_path / "set" / "labels" / "1.png").write_bytes(b"")
    skipping = replace(config.data.source, on_unreadable="skip")
    skipping = replace(config, data=replace(config.data, source=skipping))
    assert _count(skipping).counts.tolist() == [[2800, 400], [0, 0]]
    sampler = rare_class.open_sampler(skipping)
    assert sampler is not None
    assert [list(p) for p in sampler.pictures] == [[0], [0]]
    # What was kept while skipping does not hide the fault from a run that asks for an error.
    with pytest.raises(UsageError, match=r"config\.data\.source: .*1\.png is empty.*skip"):
        _count(config)


# --- what a user sees and may ask for -----------------------------------------------------------


def test_the_user_is_told_how_often_each_class_is_drawn(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=1600)], temperature=1.0)
    told = []
    sampler = rare_class.open_sampler(config, say=told.append)
    assert told[-1] == "rare class sampling: road 50 %, rider 50 %"
    assert sampler is not None
    assert sampler.facts(("road", "rider")) == {
        name: {"frequency": 0.5, "probability": 0.5, "pictures": 1} for name in ("road", "rider")
    }


def test_classes_that_are_hardly_ever_drawn_are_summed_up(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    told = []
    rare_class.open_sampler(config, say=told.append)
    assert told[-1] == "rare class sampling: rider 100 %; 1 below 1 %"


def test_off_means_that_no_label_is_counted(tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400)], enabled=False)
    assert rare_class.open_sampler(config) is None
    assert not _kept(tmp_path / "set")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"temperature": 0.0}, "rare_class.temperature"),
        ({"min_pixels": -1}, "rare_class.min_pixels"),
        ({"tries": -1}, "rare_class.tries"),
        ({"min_share": 1.0}, "rare_class.min_share"),
        ({"min_pixels": 3000, "min_share": None}, "rare_class"),
    ],
)
def test_options_that_cannot_work_are_refused(given, field, tmp_path):
    config = _folder(tmp_path / "set", [_label(rider=400)])
    model = options.Model(encoder=replace(options.Encoder(), sr_ratios=(1, 1, 1, 1)))
    config = replace(config, model=model)
    check_config(config)
    rare = replace(config.data.rare_class, **given)
    with refused(f"config.data.{field}"):
        check_config(replace(config, data=replace(config.data, rare_class=rare)))
