"""Our scores against those of mmseg and cityscapesScripts on the same predictions."""

import golden
import numpy as np
import pytest

from mrm_jax.evaluation.confusion import confusion_matrix, scores


@pytest.mark.parametrize("name", golden.cases("metrics"))
def test_metrics(name):
    case = golden.load(name)
    given, expected = case.groups["in"], case.groups["out"]
    classes = case.meta["num_classes"]
    # One picture at a time, as evaluation streams them.
    confusion = sum(
        np.asarray(confusion_matrix(p, y, classes), np.int64)
        for p, y in zip(given["pred"], given["gt"], strict=True)
    )
    assert isinstance(confusion, np.ndarray)
    assert np.array_equal(confusion, expected["confusion_gt_rows_pred_cols_numpy"])
    found = scores(confusion)
    # float64 divisions of the same integers; the reference divides in torch's float64 too.
    same = {"rtol": 1e-12, "equal_nan": True}
    np.testing.assert_allclose(found.iou, expected["IoU"], **same)
    np.testing.assert_allclose(found.pixel_accuracy, expected["aAcc"], **same)
    np.testing.assert_allclose(found.iou, expected["cityscapesscripts_IoU"], **same)
    np.testing.assert_allclose(found.mean_iou, expected["cityscapesscripts_mIoU"], **same)
    np.testing.assert_allclose(found.mean_iou, np.nanmean(expected["IoU"]), **same)


@pytest.mark.parametrize("name", golden.cases("metrics"))
def test_one_pixel_of_metrics_more_is_seen(name):
    case = golden.load(name)
    prediction, label = case.groups["in"]["pred"].copy(), case.groups["in"]["gt"]
    at = tuple(np.argwhere(label != case.meta["ignore"])[0])
    classes = case.meta["num_classes"]
    prediction[at] = (prediction[at] + 1) % classes
    changed = np.asarray(confusion_matrix(prediction, label, classes))
    assert not np.array_equal(changed, case.groups["out"]["confusion_gt_rows_pred_cols_numpy"])
