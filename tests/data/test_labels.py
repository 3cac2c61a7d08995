import numpy as np
import pytest

from mrm_jax.data import labels
from mrm_jax.errors import UsageError


def _map(raw, raw_ids, ignored, classes):
    return labels.map_labels(
        raw, raw_ids, ignored, classes=classes, name="street.png", field="config.data.source"
    )


def test_camvid_train_ids_become_the_eleven_classes_in_table_order():
    raw = np.array([[0, 1, 2, 4, 5, 7], [8, 10, 11, 13, 18, 255]], np.uint8)
    got = _map(raw, labels.CAMVID_IDS, (255,), 11)
    np.testing.assert_array_equal(got, [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 255]])
    names = [labels.CITYSCAPES.names[row[0]] for row in labels.CAMVID_IDS]
    assert tuple(names) == labels.CAMVID.names


def test_every_known_data_set_maps_each_id_once_and_the_rest_to_ignore():
    cases = {
        "cityscapes": (labels.CITYSCAPES_IDS, labels.CITYSCAPES_IGNORED, range(35)),
        "synthia": (labels.SYNTHIA_IDS, labels.SYNTHIA_IGNORED, range(23)),
    }
    for raw_ids, ignored, every in cases.values():
        got = _map(np.array([list(every)], np.uint16), raw_ids, ignored, 19)[0]
        for train_id, (raw,) in enumerate(raw_ids):
            assert got[raw] == train_id
        assert sorted(set(got.tolist())) == [*range(19), 255]
        assert (got == 255).sum() == len(list(every)) - 19


def test_known_ids_stand_for_the_right_names():
    # Spot checks from the sets' own lists: Cityscapes car 26, sky 23; SYNTHIA road 3, sign 9.
    name = labels.CITYSCAPES.names
    assert name[labels.CITYSCAPES_IDS.index((26,))] == "car"
    assert name[labels.CITYSCAPES_IDS.index((23,))] == "sky"
    assert name[labels.SYNTHIA_IDS.index((3,))] == "road"
    assert name[labels.SYNTHIA_IDS.index((9,))] == "sign"
    assert labels.DRAWN.colours[labels.DRAWN.names.index("bus")] == (0, 60, 100)


def test_several_raw_ids_may_share_a_class():
    got = _map(np.array([[3, 4, 9]], np.uint8), ((3, 4), (9,)), (), 2)
    np.testing.assert_array_equal(got, [[0, 0, 1]])


def test_an_id_in_neither_list_is_named_with_its_file_share_and_way_out():
    raw = np.array([[0, 1, 77, 300]], np.uint16)
    with pytest.raises(
        UsageError, match=r"street\.png: label id 77, 300 \(50\.0%.*data\.source\.ignored_ids"
    ):
        _map(raw, (), (255,), 2)


def test_a_raw_id_listed_twice_is_refused():
    with pytest.raises(UsageError, match="raw label id 4 occurs twice"):
        _map(np.zeros((1, 1), np.uint8), ((3, 4), (4,)), (), 2)


def test_ids_without_a_colour_are_black():
    got = labels.colourise(np.array([[0, 13, 255]], np.uint8), labels.CITYSCAPES)
    np.testing.assert_array_equal(got, [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]])
