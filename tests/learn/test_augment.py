"""Augmentation: drawn from seed and place alone, and doing to pixels what it says."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from gpusq_onnx.data.source import Box  # noqa: E402
from gpusq_onnx.learn.augment import Blend, ImageAugmentation, blend, look, mixed, mixed_labels, partner_rows, shown  # noqa: E402
from gpusq_onnx.learn.settings import TrainingOptions  # noqa: E402

PLAIN = ImageAugmentation(Box(), False, (1.0, 1.0, 1.0))


def _images(channels_last: bool = False) -> torch.Tensor:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return x.permute(0, 2, 3, 1).contiguous() if channels_last else x


def test_looks_follow_from_seed_epoch_and_place() -> None:
    settings = TrainingOptions(crop=0.2, jitter=0.4)
    looks = [look(settings, 1, 0, place) for place in range(400)]
    assert looks == [look(settings, 1, 0, place) for place in range(400)]
    assert looks != [look(settings, 1, 1, place) for place in range(400)]
    areas = np.array([one.box.area for one in looks])
    aspects = np.array([one.box.aspect for one in looks])
    assert 0.2 <= areas.min() < 0.22 and 0.98 < areas.max() <= 1
    assert 0.75 <= aspects.min() < 0.77 and 1.3 < aspects.max() <= 4 / 3 + 1e-9
    assert 0.4 < np.mean([one.flip for one in looks]) < 0.6
    colours = np.array([one.colour for one in looks])
    assert (colours >= 0.6).all() and (colours <= 1.4).all() and colours.std() > 0.15


@pytest.mark.parametrize("last", [False, True])
def test_flip_mirrors_the_width(last: bool) -> None:
    x = _images(last)
    y = shown(x, [PLAIN, ImageAugmentation(Box(), True, (1.0, 1.0, 1.0)), PLAIN, PLAIN])
    width = 2 if last else 3
    assert torch.equal(y[1], x[1].flip(width - 1)) and torch.equal(y[0], x[0])


def test_colours() -> None:
    x = _images()
    brighter, greyer, flat = shown(
        x[:3], [ImageAugmentation(Box(), False, c) for c in ((1.5, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 1.0))]
    )
    low = x[0].min()
    torch.testing.assert_close(brighter, (x[0] - low) * 1.5 + low)
    assert float(greyer.std(0).max()) < 1e-6 and float(greyer.std()) > 0.1
    assert float(flat.std()) < 1e-6
    pixels = (x * 255).to(torch.uint8)
    assert shown(pixels, [ImageAugmentation(Box(), False, (3.0, 1.0, 1.0))] * 4).dtype == torch.uint8


def test_partners_are_neighbours_and_odd_ones_stay() -> None:
    assert partner_rows([4, 5, 6, 7]) == [1, 0, 3, 2]
    assert partner_rows([5, 6, 7, 8]) == [0, 2, 1, 3]
    assert partner_rows([4, 6, 7]) == [0, 2, 1]


def test_mixup_and_cutmix() -> None:
    x = _images()
    up, cut = Blend(0.75, None), Blend(0.75, (0.0, 1.0))
    y = mixed(x, [0, 1, 2, 3], [up, up, cut, cut])
    torch.testing.assert_close(y[0], 0.75 * x[0] + 0.25 * x[1])
    torch.testing.assert_close(y[1], 0.75 * x[1] + 0.25 * x[0])
    assert torch.equal(y[2][:, :4, 4:], x[3][:, :4, 4:]), "a quarter of the area, top right"
    assert torch.equal(y[2][:, 4:], x[2][:, 4:]) and torch.equal(y[2][:, :4, :4], x[2][:, :4, :4])
    labels = mixed_labels(torch.tensor([5, 6, 7, 8]), [0, 1, 2, 9], [up, up, cut, cut])
    assert labels.own.tolist() == [5, 6, 7, 8] and labels.other.tolist() == [6, 5, 7, 8]
    assert labels.share.tolist() == [0.75, 0.75, 1, 1], "without its partner an image is not mixed"


def test_how_often_and_how_pairs_are_mixed() -> None:
    drawn = [blend(TrainingOptions(mix="both", mixed=0.3), 0, 2, pair) for pair in range(600)]
    blends = [one for one in drawn if one is not None]
    assert 0.24 < len(blends) / len(drawn) < 0.36
    assert 0.4 < np.mean([one.corner is None for one in blends]) < 0.6
    assert all(blend(TrainingOptions(), 0, 0, pair) is None for pair in range(20))
    assert all(
        b is not None and b.corner for b in (blend(TrainingOptions(mix="cutmix", mixed=1), 0, 0, p) for p in range(9))
    )
