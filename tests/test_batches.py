"""Which examples a step sees: a pure function of settings, seed and step, with every data setting doing what its help text says."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from lib_tuner.data.batches import Batches, check_world, validation
from lib_tuner.data.items import from_rows, to_rows
from lib_tuner.settings import DataConfig

class MeanVAE:
    """Stands for the VAE: the mean of each 8 x 8 block, with a fourth channel; counts what it encodes."""

    factor, cache_key = 8, "mean"

    def __init__(self):
        self.calls = 0

    def encode(self, pixels):
        self.calls += len(pixels)
        mean = avg_pool2d(torch.cat([pixels, pixels.mean(1, keepdim=True)], 1), 8)
        return mean, mean.abs() * 0.1 + 0.01


SMALL = dict(resolution=64, bucket_step=16, bucket_min=32, bucket_max=128)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photographs in three shapes, two of each, with captions."""
    from skimage.data import astronaut, chelsea

    folder = tmp_path_factory.mktemp("photos")
    for name, source in (("person", Image.fromarray(astronaut())), ("cat", Image.fromarray(chelsea()))):
        for shape, size in (("square", (100, 100)), ("wide", (160, 80)), ("tall", (80, 160))):
            source.resize(size).save(folder / f"{name} {shape}.png")
            (folder / f"{name} {shape}.txt").write_text(f"{name}, {shape}, photo, bright")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    for i in range(5):
        Image.new("RGB", (100, 100) if i < 3 else (160, 80), (50 * i, 20, 20)).save(folder / f"class {i}.png")
    return folder


def make(folder, seed=0, trigger="", items=None, vae=None, **settings):
    cfg = DataConfig(**{"folder": str(folder), **SMALL, **settings})
    return Batches(cfg, SimpleNamespace(vae=vae or MeanVAE()), seed, trigger, items)


def epoch(batches, n=0):
    return [batches.at(step) for step in range(n * batches.steps_per_epoch, (n + 1) * batches.steps_per_epoch)]


def names(parts):
    return Counter(item.path.stem for batch in parts for item in batch.items)


def equal(a, b):
    return (
        (a.indices, a.captions, a.items, a.views) == (b.indices, b.captions, b.items, b.views)
        and torch.equal(a.latents, b.latents)
        and torch.equal(a.weights, b.weights)
        and ((a.mask is None and b.mask is None) or torch.equal(a.mask, b.mask))
    )


RICH = dict(batch=2, shuffle_tags=True, tag_dropout=0.3, caption_dropout=0.2, flip="all", crop_jitter=6, latent="random", repeats=3)


def test_a_step_is_a_function_of_the_seed_and_the_step(photos):
    one, two = make(photos, seed=5, **RICH), make(photos, seed=5, **RICH)
    steps = [40, 3, 17, 0, 3]
    assert all(equal(one.at(step), two.at(step)) for step in range(45))
    assert all(equal(one.at(step), make(photos, seed=5, **RICH).at(step)) for step in steps)  # in whatever order they are asked for
    assert any(not equal(one.at(step), make(photos, seed=6, **RICH).at(step)) for step in steps)


@pytest.mark.parametrize("kind", ["memory", "disk", "off"])
def test_the_cache_never_changes_an_example(photos, tmp_path, kind):
    settings = RICH | dict(crop_jitter=0)  # without a cache every crop is a new one
    batches = make(photos, cache=kind, cache_folder=str(tmp_path / "c"), **settings)
    again = make(photos, cache=kind, cache_folder=str(tmp_path / "c"), **settings)
    list(again.prepare())
    reference = make(photos, **settings)
    assert all(equal(reference.at(step), batches.at(step)) and equal(reference.at(step), again.at(step)) for step in range(12))


def test_world_size_does_not_change_an_example(photos):
    batches = make(photos, **RICH | dict(batch=3))
    for step in range(12):
        whole, parts = batches.at(step), [batches.at(step, rank, 2) for rank in range(2)]
        assert sum(map(len, parts)) == len(whole)
        for rank, part in enumerate(parts):
            assert part.indices == whole.indices[rank::2] and part.captions == whole.captions[rank::2]
            assert torch.equal(part.latents, whole.latents[rank::2]) and torch.equal(part.weights, whole.weights[rank::2])


@pytest.mark.parametrize("latent", ["once", "deterministic", "random"])
def test_what_is_kept_of_a_latent_changes_no_example_and_is_half_where_it_is_one(photos, latent):
    """Without a cache nothing is kept, and on the disk all: a run draws the same from each."""
    kept, off, disk = (make(photos, seed=3, latent=latent, cache=cache, cache_folder=str(photos.parent / f"latents {latent}")) for cache in ("memory", "off", "disk"))
    assert list(kept.prepare())
    for step in range(6):
        assert torch.equal(kept.at(step).latents, off.at(step).latents) and torch.equal(kept.at(step).latents, disk.at(step).latents)
    part = kept.at(0)
    entries = [batches.cache.get(part.items[0], part.views[0]) for batches in (kept, disk)]
    assert [entry.std is None for entry in entries] == [latent != "random", False]


def test_more_processes_than_pictures_in_a_batch_are_refused_and_a_small_last_batch_is_empty(photos):
    batches = make(photos, batch=4)  # two pictures in each bucket
    assert len(batches.at(0, 3, 4)) == 0 and batches.at(0, 3, 4).latents.shape[1:] == batches.at(0).latents.shape[1:]
    with pytest.raises(ValueError, match="data.batch: 4 cannot be shared by 5 processes"):
        batches.at(0, 0, 5)
    with pytest.raises(ValueError, match="cannot be shared by 5 processes"):
        check_world(DataConfig(batch=4), 5)  # before anything is read
    check_world(DataConfig(batch=4), 4)


def test_sample_indices_are_unique_over_the_run(photos):
    batches = make(photos, batch=4)
    indices = [i for step in range(60) for i in batches.at(step).indices]
    assert len(set(indices)) == len(indices) and batches.at(7).indices[0] == 28


def test_batch_is_how_many_pictures_are_together(photos):
    assert Counter(len(batch) for batch in epoch(make(photos, repeats=3, batch=4))) == {4: 3, 2: 3}  # six samples in each of three buckets
    assert make(photos, batch=1).steps_per_epoch == 6 and make(photos, batch=2).steps_per_epoch == 3


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_an_epoch_has_every_picture_as_often_as_its_repeats_say_and_no_mixed_batch(photos, batch):
    batches = make(photos, repeats=3, batch=batch)
    for n in (0, 1, 7):
        parts = epoch(batches, n)
        assert set(names(parts).values()) == {3} and len(names(parts)) == 6
        assert all(len({view.bucket for view in part.views}) == 1 for part in parts)
        assert all(part.latents.shape[2:] == (part.views[0].bucket[1] // 8, part.views[0].bucket[0] // 8) for part in parts)
    orders = [[item.path.stem for part in epoch(batches, n) for item in part.items] for n in range(3)]
    assert orders[0] != orders[1] != orders[2]
    buckets = [part.views[0].bucket for n in range(3) for part in epoch(batches, n)]
    assert sum(a != b for a, b in zip(buckets, buckets[1:])) > 9  # buckets take turns; one after another would change 8 times


def test_a_folder_number_multiplies_the_repeats(photos, tmp_path):
    for name, folder in (("a", "3_cat"), ("b", "plain")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), "red" if name == "a" else "blue").save(tmp_path / folder / f"{name}.png")
    assert names(epoch(make(tmp_path, repeats=2))) == {"a": 6, "b": 2}


def test_buckets_and_resolution_give_the_sizes(photos):
    assert {view.bucket for part in epoch(make(photos)) for view in part.views} == {(64, 64), (80, 48), (48, 80)}
    assert {view.bucket for part in epoch(make(photos, buckets=False)) for view in part.views} == {(64, 64)}
    assert {view.bucket for part in epoch(make(photos, resolution=96)) for view in part.views} == {(96, 96), (128, 64), (64, 128)}
    small = make(photos, resolution=256, upscale=False, bucket_max=512)
    assert {view.bucket for part in epoch(small) for view in part.views} == {(96, 96), (160, 80), (80, 160)}


def test_a_bucket_step_between_latent_pixels_is_refused(photos):
    with pytest.raises(ValueError, match="data.bucket_step: 12 px is no multiple of 8 px"):
        make(photos, bucket_step=12)


# ---- class and held-out pictures


@pytest.mark.parametrize("share, expected", [(0.0, 0), (0.25, 4), (0.5, 12), (0.75, 36)])
def test_class_pictures_make_up_their_share_of_every_epoch(photos, classes, share, expected):
    batches = make(photos, class_folder=str(classes), class_share=share, class_weight=0.3, repeats=2, batch=2)
    first = [batches.at(step) for step in range(batches.steps_per_epoch)]
    count = Counter(item.is_class for batch in first for item in batch.items)
    assert count[False] == 12 and count[True] == expected
    weights = torch.cat([batch.weights for batch in first])
    assert sorted(set(weights.tolist())) == ([1.0] if not share else pytest.approx([0.3, 1.0]))
    assert all(w == (pytest.approx(0.3) if item.is_class else 1.0) for batch in first for w, item in zip(batch.weights.tolist(), batch.items))


def test_class_pictures_take_turns_over_the_epochs_and_every_epoch_is_whole(photos, classes):
    batches = make(photos, class_folder=str(classes), class_share=0.25, batch=1)  # 2 of 5 class pictures an epoch
    parts = [batches.at(step) for step in range(8 * 5)]
    count = names([part for part in parts if part.items[0].is_class])
    assert batches.steps_per_epoch == 8 and len(count) == 5 and set(count.values()) == {2}
    assert all(set(names(parts[8 * n : 8 * n + 8]).values()) == {1} for n in range(5))


def test_epochs_of_unequal_length_are_found_from_any_step(photos, classes):
    batches = make(photos, class_folder=str(classes), class_share=0.25, batch=2)
    parts = [batches.at(step) for step in range(60)]
    assert all(equal(make(photos, class_folder=str(classes), class_share=0.25, batch=2).at(step), parts[step]) for step in (59, 31, 4))
    subjects = [n for stem, n in names(parts).items() if not stem.startswith("class")]
    assert max(subjects) - min(subjects) <= 1  # no epoch is cut or skipped: at most the one under way tells them apart


def test_class_captions_are_free_of_the_trigger_word(photos, classes):
    batches = make(photos, class_folder=str(classes), trigger="zwx", template="subject_filewords")
    for batch in epoch(batches):
        assert all(("zwx" in text) != item.is_class for text, item in zip(batch.captions, batch.items))


def test_held_out_pictures_are_never_trained_on(photos, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    for name in ("cat wide.png", "cat square.png", "person square.png"):
        (held / name).write_bytes((photos / name).read_bytes())
    batches = make(photos, validation_folder=str(held))
    assert set(names(epoch(batches))) == {"cat tall", "person wide", "person tall"}
    assert sorted(p.path.name for p in batches.problems if p.kind == "held out") == ["cat square.png", "cat wide.png", "person square.png"]
    with pytest.raises(ValueError, match="holds every picture of data.folder"):
        make(photos, validation_folder=str(photos) + "/")


def test_validation_is_the_same_every_time(photos):
    settings = {"folder": "elsewhere", "validation_folder": str(photos), **SMALL, **RICH, "template": "style_filewords", "repeats": 4}
    cfg, sd = DataConfig(**settings), SimpleNamespace(vae=MeanVAE())
    parts = validation(cfg, sd, "zwx")
    assert all(equal(a, b) for a, b in zip(parts, validation(cfg, sd, "zwx")))
    assert set(names(parts).values()) == {1} and [i for part in parts for i in part.indices] == list(range(6))
    assert all("bright" in text and "zwx" in text for part in parts for text in part.captions)  # nothing dropped
    assert all(not view.flip and view.shift == (0, 0) and not view.room for part in parts for view in part.views)
    assert all(torch.equal(part.latents[0], make(photos, latent="deterministic").cache.get(part.items[0], part.views[0]).mean) for part in parts)
    assert validation(replace(cfg, validation_folder=""), sd) == []


# ---- one example


def test_captions_follow_the_settings(photos):
    assert {text for part in epoch(make(photos, trigger="zwx")) for text in part.captions} >= {"zwx, cat, wide, photo, bright"}
    assert {text for part in epoch(make(photos, caption_from="filename")) for text in part.captions} >= {"cat wide"}
    long = [text for n in range(10) for part in epoch(make(photos, shuffle_tags=True, keep_tags=1), n) for text in part.captions]
    assert len(set(long)) > 12 and {text.split(", ")[0] for text in long} == {"cat", "person"}


def test_token_warm_up_counts_updates_where_gradients_are_accumulated(photos):
    batches = make(photos, token_warmup=4)
    assert [len(batches.at(step).captions[0].split(", ")) for step in range(5)] == [1, 1, 2, 3, 4]  # 1 + floor(step * 3 / 4)
    assert [len(batches.at(step, update=step // 2).captions[0].split(", ")) for step in range(9)] == [1, 1, 1, 1, 2, 2, 3, 3, 4]


def test_flip_mirrors_half_of_the_examples(photos):
    off, all_ = make(photos, repeats=20), make(photos, repeats=20, flip="all", latent="deterministic")
    assert not any(view.flip for part in epoch(off) for view in part.views)
    flips = [(view.flip, part) for part in epoch(all_) for view in part.views]
    assert 40 < sum(flip for flip, _ in flips) < 80  # of 120
    for flip, part in flips[:10]:
        straight = all_.cache.get(part.items[0], replace(part.views[0], flip=False)).mean
        assert torch.allclose(all_.cache.get(part.items[0], part.views[0]).mean, straight.flip(-1) if flip else straight, atol=1e-6)


def test_safe_flip_leaves_pictures_that_have_a_side(tmp_path):
    texts = ["looking_left", "Right hand", "text, watermark", "upright lefty texture", "a cat"]
    for i, text in enumerate(texts):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(text)
    flipped = {part.items[0].caption for part in epoch(make(tmp_path, flip="safe", repeats=20)) if part.views[0].flip}
    assert flipped == {"upright lefty texture", "a cat"}
    assert len({part.items[0].caption for part in epoch(make(tmp_path, flip="all", repeats=20)) if part.views[0].flip}) == 5


def test_crop_jitter_moves_within_its_bounds_over_so_many_cached_crops(photos):
    for variants in (1, 3):
        views = [view for part in epoch(make(photos, crop_jitter=7, crop_variants=variants, repeats=30)) for view in part.views if view.bucket == (64, 64)]
        shifts = {view.shift for view in views}
        assert len(shifts) == 2 * variants  # two square pictures
        assert all(abs(d) <= 7 for shift in shifts for d in shift) and any(shift != (0, 0) for shift in shifts)
    free = {view.shift for part in epoch(make(photos, crop_jitter=7, cache="off", repeats=10)) for view in part.views}
    assert len(free) > 30  # nothing cached: a crop of its own each time
    still = make(photos, repeats=2)
    assert {view.shift for part in epoch(still) for view in part.views} == {(0, 0)}
    moved = make(photos, crop_jitter=7)
    assert not any(torch.equal(moved.at(s).latents, still.at(s).latents) for s in range(3) if moved.at(s).items == still.at(s).items)


def test_latent_sampling_draws_once_anew_or_never(photos):
    drawn = {kind: {} for kind in ("once", "deterministic", "random")}
    for kind, seen in drawn.items():
        batches = make(photos, latent=kind)
        for step in range(12):
            batch = batches.at(step)
            seen.setdefault(batch.items[0].path.stem, []).append(batch.latents[0])
    for stem in drawn["once"]:
        a, b = (torch.stack(drawn[kind][stem]) for kind in ("once", "deterministic"))
        assert torch.equal(a[0], a[1]) and torch.equal(b[0], b[1]) and not torch.equal(a[0], b[0])
        assert not torch.equal(*drawn["random"][stem])


def test_a_masked_loss_without_a_mask_says_that_it_changes_nothing(photos, tmp_path):
    told = [str(p) for p in make(photos, masks=True).problems if p.kind == "masks"]
    assert told == [f"{photos.name} has no mask and no picture with transparency, so the masked loss changes nothing."]
    assert not make(photos).problems
    Image.new("RGBA", (64, 64), (9, 9, 9, 90)).save(tmp_path / "a.png")
    assert not [p for p in make(tmp_path, masks=True).problems if p.kind == "masks"]
    Image.new("RGBA", (64, 64), (9, 9, 9, 255)).save(tmp_path / "a.png")  # an alpha channel that hides nothing
    assert [str(p) for p in make(tmp_path, masks=True).problems if p.kind == "masks"] == [f"{tmp_path.name} has no mask and no picture with transparency, so the masked loss changes nothing."]


def test_masks_weigh_and_the_floor_is_what_is_hidden(tmp_path):
    for i, mask in enumerate([True, False]):
        Image.new("RGB", (64, 64), (90 * i, 0, 0)).save(tmp_path / f"{i}.png")
        if mask:
            half = Image.new("L", (64, 64), 255)
            half.paste(0, (0, 0, 32, 64))
            half.save(tmp_path / f"{i}.mask.png")
    assert make(tmp_path, batch=2).at(0).mask is None
    batch = make(tmp_path, batch=2, masks=True, mask_floor=0.25).at(0)
    by_name = {item.path.stem: mask for item, mask in zip(batch.items, batch.mask)}
    assert batch.mask.shape == (2, 1, 8, 8)
    assert by_name["0"][0, 0].tolist() == [0.25] * 4 + [1.0] * 4 and by_name["1"].unique().tolist() == [1.0]
    assert make(tmp_path, batch=2, masks=True, mask_floor=0.0).at(0).mask.min() == 0
    parts = epoch(make(tmp_path, masks=True, mask_floor=0.25, flip="all", repeats=8))
    seen = {(part.views[0].flip, tuple(part.mask[0, 0, 0].tolist())) for part in parts if part.mask is not None}
    assert seen == {(False, (0.25,) * 4 + (1.0,) * 4), (True, (1.0,) * 4 + (0.25,) * 4)}


# ---- preparing, resuming, reporting


def test_prepare_encodes_every_view_that_a_run_asks_for(photos):
    vae = MeanVAE()
    batches = make(photos, vae=vae, flip="all", crop_jitter=4, crop_variants=3)
    seen = list(batches.prepare())
    assert vae.calls == 6 * 3 * 2 == len(seen) and seen[-1][:2] == (36, 36) and seen[0] == (1, 36, "cat square.png")
    for step in range(60):
        batches.at(step)
    assert vae.calls == 36
    vae = MeanVAE()
    assert not list(make(photos, vae=vae, cache="off").prepare()) and vae.calls == 0


def test_prepare_can_be_stopped_between_pictures(photos):
    vae = MeanVAE()
    assert next(make(photos, vae=vae).prepare())[:2] == (1, 6) and vae.calls == 1


def test_the_disk_cache_lies_beside_the_data_or_where_the_settings_say(photos, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "cat wide.png").write_bytes((photos / "cat wide.png").read_bytes())
    list(make(data, cache="disk").prepare())
    assert len(list((tmp_path / ".latents").glob("*.safetensors"))) == 1
    list(make(data, cache="disk", cache_folder=str(data / "here")).prepare())
    assert len(list((data / "here").glob("*.safetensors"))) == 1 and len(make(data, cache_folder=str(data / "here")).items) == 1


def test_frozen_items_make_a_resumed_run_see_the_same(photos, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in photos.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    before = make(data, **RICH)
    expected = [before.at(step) for step in range(10)]
    (data / "cat wide.txt").write_text("edited during the run")
    Image.new("RGB", (64, 64)).save(data / "new.png")
    resumed = make(data, items=from_rows(to_rows(before.items)), **RICH)
    assert all(equal(resumed.at(step), batch) for step, batch in enumerate(expected)) and resumed.digest == before.digest
    assert make(data, **RICH).digest != before.digest
    Image.new("RGB", (64, 64)).save(data / "cat wide.png")
    with pytest.raises(ValueError, match="cat wide.png: the file changed"):
        list(make(data, items=before.items, **RICH).prepare())


def test_the_summary_fills_the_metadata_of_the_saved_file(photos, classes, tmp_path):
    (tmp_path / "2_cat").mkdir()
    for name in ("cat wide", "cat square"):
        for end in (".png", ".txt"):
            (tmp_path / "2_cat" / (name + end)).write_bytes((photos / (name + end)).read_bytes())
    summary = make(tmp_path, class_folder=str(classes), class_share=0.5, trigger="zwx").summary()
    assert (summary["pictures"], summary["class_pictures"], summary["ss_num_train_images"], summary["ss_num_reg_images"]) == (2, 5, 4, 5)
    assert summary["ss_dataset_dirs"] == {"2_cat": {"n_repeats": 2, "img_count": 2}}
    assert summary["ss_reg_dataset_dirs"] == {classes.name: {"n_repeats": 1, "img_count": 5}}
    assert summary["ss_tag_frequency"]["2_cat"] == {"zwx": 2, "cat": 2, "photo": 2, "bright": 2, "wide": 1, "square": 1}
    assert "zwx" not in summary["ss_tag_frequency"][classes.name]
    buckets = summary["ss_bucket_info"]["buckets"].values()
    assert sum(bucket["count"] for bucket in buckets) == 8 and [64, 64] in [bucket["resolution"] for bucket in buckets]


def test_two_folders_of_one_name_stay_two(photos, tmp_path):
    for folder, names in (("a", ("cat wide",)), ("b", ("cat square", "cat tall"))):
        (tmp_path / folder / "cat").mkdir(parents=True)
        for name in names:
            for end in (".png", ".txt"):
                (tmp_path / folder / "cat" / (name + end)).write_bytes((photos / (name + end)).read_bytes())
    summary = make(tmp_path).summary()
    assert summary["ss_dataset_dirs"] == {"cat": {"n_repeats": 1, "img_count": 1}, "cat (2)": {"n_repeats": 1, "img_count": 2}}
    assert {name: tags["photo"] for name, tags in summary["ss_tag_frequency"].items()} == {"cat": 1, "cat (2)": 2}


def test_problems_of_the_scan_are_kept(photos, tmp_path):
    (tmp_path / "cat wide.png").write_bytes((photos / "cat wide.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"x")
    assert [problem.path.name for problem in make(tmp_path).problems] == ["bad.png"]
