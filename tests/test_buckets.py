"""Bucket sizes against a list made by kohya's loop, and the choice of a picture's bucket."""

import pytest

from lib_tuner.data.buckets import bucket_for, bucket_sizes
from lib_tuner.settings import DataConfig


SIZES = [(512, 64, 256, 1024), (64, 8, 32, 128), (768, 32, 320, 1536), (500, 64, 256, 1024), (512, 64, 300, 1000)]


def test_default_buckets_are_those_of_kohya():
    # library/model_util.py:1316 make_bucket_resolutions((512, 512), 256, 1024, 64), worked out by hand: 512^2 // width, down to 64
    wide = [(576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
    tall = [(h, w) for w, h in wide]
    less = [(256, 1024), (320, 768), (384, 640), (448, 576)]  # from the widths below 512; their mirrors are in `wide` already
    assert set(bucket_sizes(DataConfig())) == {(512, 512), *wide, *tall, *less}


@pytest.mark.parametrize("resolution, step, shortest, longest", SIZES)
def test_buckets_keep_the_area_and_the_limits(resolution, step, shortest, longest):
    cfg = DataConfig(resolution=resolution, bucket_step=step, bucket_min=shortest, bucket_max=longest)
    for w, h in bucket_sizes(cfg):
        assert w % step == h % step == 0 and w * h <= resolution**2
        assert shortest <= min(w, h) and max(w, h) <= longest
        assert max(w, h) == longest // step * step or (min(w, h) + step) * max(w, h) > resolution**2 or w == h  # nothing taller fits


def test_resolution_moves_the_square():
    assert bucket_for((900, 900), DataConfig(resolution=512)) == (512, 512)
    assert bucket_for((900, 900), DataConfig(resolution=768)) == (768, 768)
    assert bucket_for((900, 900), DataConfig(resolution=500)) == (448, 448)  # rounded down to the step, as in kohya


def test_bucket_step_makes_finer_sizes():
    assert bucket_for((1000, 700), DataConfig(bucket_step=64)) == (576, 448)
    fine = bucket_for((1000, 700), DataConfig(bucket_step=8))
    assert abs(fine[0] / fine[1] - 10 / 7) < 0.02


def test_shortest_and_longest_side_bound_extreme_pictures():
    banner = (3000, 300)
    assert bucket_for(banner, DataConfig()) == (1024, 256)
    assert bucket_for(banner, DataConfig(bucket_min=320)) == (768, 320)
    assert bucket_for(banner, DataConfig(bucket_max=768)) == (768, 256)
    assert max(bucket_for(banner, DataConfig(bucket_min=64, bucket_max=2048))) > 1024


def test_the_square_survives_limits_that_exclude_it():
    assert bucket_sizes(DataConfig(resolution=64, bucket_step=8)) == [(64, 64)]  # the shortest side is 256 by default


@pytest.mark.parametrize("size", [(1600, 900), (900, 1600), (512, 512), (1001, 333), (4000, 3000), (40, 4000)])
def test_the_nearest_aspect_ratio_is_chosen(size):
    chosen = bucket_for(size, DataConfig())
    error = {bucket: abs(size[0] / size[1] - bucket[0] / bucket[1]) for bucket in bucket_sizes(DataConfig())}
    assert error[chosen] == min(error.values())


def test_a_picture_that_has_the_size_of_a_bucket_keeps_it():
    for size in bucket_sizes(DataConfig()):
        assert bucket_for(size, DataConfig()) == size  # 960 x 256 and 1024 x 256 alike


def test_buckets_off_is_one_square():
    cfg = DataConfig(buckets=False)
    assert bucket_sizes(cfg) == [(512, 512)]
    assert {bucket_for(size, cfg) for size in [(1600, 900), (300, 900), (512, 512)]} == {(512, 512)}


def test_small_pictures_keep_their_size_where_enlarging_is_off():
    off = DataConfig(upscale=False)
    assert bucket_for((400, 300), DataConfig()) == (576, 448)
    assert bucket_for((400, 300), off) == (384, 256)
    assert bucket_for((2000, 1500), off) == bucket_for((2000, 1500), DataConfig())
    assert bucket_for((100, 100), off) == (256, 256)  # the shortest side is a limit
    assert bucket_for((100, 100), DataConfig(upscale=False, bucket_min=64)) == (64, 64)
    assert bucket_for((300, 400), DataConfig(upscale=False, buckets=False)) == (256, 256)


@pytest.mark.parametrize("size", [(2000, 220), (220, 2000), (700, 300), (513, 511), (90, 3000)])
def test_own_sizes_never_enlarge_and_keep_the_area(size):
    w, h = bucket_for(size, DataConfig(upscale=False, bucket_min=64, bucket_max=2048))
    assert w <= size[0] and h <= size[1] and w * h <= 512 * 512 and w % 64 == h % 64 == 0
    lost = 1 - max(w / size[0], h / size[1])
    assert lost < 64 / min(size) or size[0] * size[1] > 512 * 512  # no more than rounding to a step takes


@pytest.mark.parametrize(("size", "limits", "own"), [
    ((100, 5000), (256, 4096), (256, 1024)), ((5000, 100), (256, 4096), (1024, 256)), ((100, 5000), (512, 4096), (512, 512)), ((10, 9000), (448, 2048), (448, 576)),
])  # fmt: skip
def test_a_side_that_the_shortest_one_enlarges_takes_no_area_beyond_the_squares(size, limits, own):
    assert bucket_for(size, DataConfig(upscale=False, bucket_min=limits[0], bucket_max=limits[1])) == own


def test_a_resolution_below_one_step_says_what_to_do():
    with pytest.raises(ValueError, match="data.resolution: 32 px is shorter than one bucket step"):
        bucket_sizes(DataConfig(resolution=32))
