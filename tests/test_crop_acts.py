"""Acts on crops, taken back whenever the program that did them ends."""

from __future__ import annotations

import os

import pytest

from lib_tuner.data.crop import Frame
from lib_tuner.data.crop_acts import KeptActs, Overtaken
from lib_tuner.data.crop_file import Crop, PictureCrops, change_crops, read_crops


def record(x: float) -> PictureCrops:
    return PictureCrops((100, 100), "d", (Crop(Frame(x, 0.5)),))


def put(folder, name, x, noting):
    change_crops(folder, lambda kept: {**kept, name: record(x)}, noting=noting)


def killed(*todo):
    """Does it in a program that ends between writing the act and the crops."""
    def dies(source, target, real=os.replace):
        os._exit(9) if os.path.basename(target) == "crops.json" else real(source, target)

    child = os.fork()
    if not child:
        try:
            os.replace = dies
            put(*todo)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the program that ends is a fork")
def test_an_act_of_a_program_that_ended_before_it_wrote_the_crops_is_taken_back(tmp_path):
    noting = KeptActs(tmp_path).noting("find", "one run")
    put(tmp_path, "a.png", 0.1, noting)
    put(tmp_path, "b.png", 0.2, noting)
    killed(tmp_path, "c.png", 0.3, noting)
    act = KeptActs(tmp_path).last()
    assert set(act.before) == {"a.png", "b.png", "c.png"} and set(read_crops(tmp_path)) == {"a.png", "b.png"}
    assert change_crops(tmp_path, act.taken_back) == {}


def test_an_act_is_taken_back_again_where_the_program_ended_before_forgetting_it(tmp_path):
    put(tmp_path, "a.png", 0.1, KeptActs(tmp_path).noting("find"))
    put(tmp_path, "a.png", 0.4, KeptActs(tmp_path).noting("change"))
    act = KeptActs(tmp_path).last()
    for _ in range(2):
        assert change_crops(tmp_path, act.taken_back) == {"a.png": record(0.1)}


def test_crops_that_somebody_has_changed_since_are_not_taken_back(tmp_path):
    put(tmp_path, "a.png", 0.1, KeptActs(tmp_path).noting("find"))
    act = KeptActs(tmp_path).last()
    put(tmp_path, "a.png", 0.4, KeptActs(tmp_path).noting("change"))
    with pytest.raises(Overtaken):
        change_crops(tmp_path, act.taken_back)
    assert read_crops(tmp_path) == {"a.png": record(0.4)}
