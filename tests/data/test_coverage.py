"""What is said of a run's labels and pictures before anything is compiled."""

import threading
from dataclasses import replace

import downloads
import numpy as np
import pytest
from refusals import refused

from mrm_jax.config import Classes, Config, Data, Domain
from mrm_jax.data import coverage, sources
from mrm_jax.data.class_statistics import class_statistics

FIELD = "config.data.source"
THREE = Classes(("rest", "road", "car"), ((0, 0, 0),) * 3)


def run(root, count=4, *, values=(0, 255), size=(8, 10), **source):
    """A config of a folder with labels of these ids in equal parts, and a folder as the target."""
    for k in range(count):
        label = np.resize(np.array(values, np.uint8), size)
        downloads.save_image(root / f"source/images/{k}.png", np.zeros((*size, 3), np.uint8))
        downloads.save_grey(root / f"source/labels/{k}.png", label)
        downloads.save_image(root / f"target/{k}.jpg", np.zeros((*size, 3), np.uint8))
    domain = Domain(path=str(root / "source"), images="images", labels="labels", **source)
    target = Domain(path=str(root / "target"))
    return Config(data=Data(classes=THREE, source=domain, target=target, crop=size))


def test_the_share_of_ignored_pixels_and_the_classes_that_never_occur_are_said(tmp_path):
    noticed = coverage.notice(run(tmp_path), target=True)
    assert noticed.lines == (
        "labels of config.data.source (all 4): 50.0% of the pixels are ignored; "
        "1 of 3 classes occur; never: road, car",
    )
    assert noticed.warnings == ()
    assert noticed.labels is not None
    assert noticed.labels.facts(THREE.names) == {
        **{"labels": 4, "of": 4, "estimated": False, "ignored": 0.5, "never": ["road", "car"]}
    }


def test_a_source_without_any_class_in_the_labels_looked_at_is_refused(tmp_path):
    with refused(FIELD, way_out="ignored_ids"):
        coverage.notice(run(tmp_path, values=(255,)), target=True)


def test_a_sample_is_spread_evenly_and_called_an_estimate(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage, "SAMPLED", 5)
    config = run(tmp_path, 20, values=(0, 1))
    names = sorted(map(str, range(20)))  # the order of a folder
    for name in names[::4]:
        downloads.save_grey(tmp_path / f"source/labels/{name}.png", np.full((8, 10), 2, np.uint8))
    found = coverage.notice(config, target=False).labels
    assert found is not None
    assert (found.labels, found.of, found.known) == (5, 20, False)
    np.testing.assert_array_equal(found.pixels, [0, 0, 5 * 80])
    assert "estimated from 5 of 20" in found.sentence(FIELD, THREE.names)


def test_statistics_that_are_kept_are_used_and_no_label_is_read(tmp_path, monkeypatch):
    config = run(tmp_path, 6, values=(0, 1, 255, 255))
    source = config.data.source
    opened = sources.open_labelled(source, THREE, field=FIELD)
    counted = class_statistics(opened, source, 3, field=FIELD)
    monkeypatch.setattr(sources.FolderLabelled, "label", None)
    monkeypatch.setattr(coverage, "SAMPLED", 2)
    found = coverage.notice(config, target=False).labels
    assert found is not None
    assert (found.known, found.ignored) == (True, 0.5)
    np.testing.assert_array_equal(found.pixels, counted.counts.sum(0))


def test_it_ends_in_time_with_what_was_seen_by_then(tmp_path, monkeypatch):
    config = run(tmp_path, 8, values=(0,))
    read, hangs = sources.FolderLabelled.label, threading.Event()

    def slow(self, index):
        if index:
            hangs.wait()
        return read(self, index)

    monkeypatch.setattr(sources.FolderLabelled, "label", slow)
    monkeypatch.setattr(coverage, "SECONDS", 0.1)
    found = coverage.notice(config, target=False).labels
    hangs.set()
    assert found is not None
    assert (found.labels, found.of, found.known) == (1, 8, False)


def test_a_label_that_cannot_be_read_is_named_or_left_out(tmp_path):
    config = run(tmp_path)
    (tmp_path / "source/labels/2.png").write_bytes(b"no picture")
    with refused(FIELD) as caught:
        coverage.notice(config, target=True)
    assert "labels/2.png" in str(caught.value)
    skipping = replace(config.data.source, on_unreadable="skip")
    config = replace(config, data=replace(config.data, source=skipping))
    found = coverage.notice(config, target=True).labels
    assert found is not None
    assert found.labels == 3


@pytest.mark.parametrize(
    ("crop", "resize", "warned"),
    [
        ((8, 10), None, []),
        ((8, 11), None, [FIELD, "config.data.target"]),
        ((16, 20), None, [FIELD, "config.data.target"]),
        ((16, 20), (20, 16), ["config.data.target"]),  # the source alone is enlarged
    ],
)
def test_pictures_smaller_than_the_crop_are_said_with_how_much_is_padding(
    tmp_path, crop, resize, warned
):
    config = run(tmp_path, resize=resize)
    config = replace(config, data=replace(config.data, crop=crop))
    found = coverage.notice(config, target=True).warnings
    assert len(found) == len(warned)
    for line, field in zip(found, warned, strict=True):
        assert f"larger than 4 of 4 pictures of {field} " in line
        share = 1 - 80 / (crop[0] * crop[1])
        assert f"{share:.0%} of their crops is padding" in line


def test_where_no_pass_looks_at_the_target_it_is_not_opened(tmp_path):
    config = run(tmp_path)
    nowhere = replace(config.data, target=Domain(path="nowhere"))
    assert coverage.notice(replace(config, data=nowhere), target=False).lines
