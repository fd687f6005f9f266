"""Which examples a step sees: a pure function of (settings, items, seed, step), so that a resumed run and any number of processes see the same.

Axes: B samples of a batch, C latent channels (4), h w latent pixels. An epoch is every picture as often as its repeats say, plus class pictures; a batch holds
pictures of one bucket, and the last of a bucket is smaller, as in kohya. Sample j of step s has the global index s * batch + j; all its randomness hangs on it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk import absolute, expanded
from ..sd.inpaint import channels
from ..settings import DataConfig
from . import mirrored
from .buckets import bucket_for
from .cache import SEEN, Draw, Entry, LatentCache
from .hints import Hints
from .holes import Holes
from .item import Item
from .items import Problem, items_digest, scan
from .keyed import rng
from .pictures import View
from .prompts import Prompts



@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one step on the CPU; B is 0 where a process gets nothing of a bucket's last, smaller batch."""

    indices: tuple[int, ...]  # global sample indices: what noise and timesteps are keyed by
    latents: Tensor  # (B, C, h, w) fp32, scaled
    captions: list[str]
    weights: Tensor  # (B,)
    mask: Tensor | None  # (B, 1, h, w) in [mask_floor, 1]; None where no picture of the batch has one
    items: list[Item]
    views: list[View]  # how each picture was cropped and mirrored: hints are treated in the same way
    hint: Tensor | None = None  # (B, 3, H, W) in [0, 1], for a method that asks for hints
    extra: Tensor | None = None  # (B, 5, h, w): what an inpainting model reads beside the noisy latents

    def __len__(self) -> int:
        return len(self.indices)


class Batches:
    """The training examples of a run; `items` are the frozen ones of a resumed run, else the folders are scanned.

    `sd.vae` as in `LatentCache`; `hints`: of a method that asks for them, `holes`: of an inpainting model. Latents are encoded when first asked for, or
    beforehand by `prepare`.
    Raises ValueError for folders without pictures and settings that do not fit together.
    """

    def __init__(self, cfg: DataConfig, sd: Any, seed: int = 0, trigger: str = "", items: list[Item] | None = None, hints: Hints | None = None,
                 holes: Holes | None = None):  # fmt: skip
        if cfg.bucket_step % sd.vae.factor:
            raise ValueError(f"data.bucket_step: {cfg.bucket_step} px is no multiple of {sd.vae.factor} px, the side of a latent pixel; set one that is.")
        self.cfg, self.seed = cfg, seed
        self.prompts = Prompts(cfg, trigger)
        self.hints, self.holes = hints, holes
        self.items, self.problems = (items, []) if items is not None else with_hints(find_items(cfg), hints)
        self.cache = LatentCache(sd.vae, cfg.cache, cache_folder(cfg), cfg.masks, Draw(cfg.latent, seed))
        self._buckets = [bucket_for(item.size, cfg) for item in self.items]
        self._subjects = [i for i, item in enumerate(self.items) if not item.is_class for _ in range(item.repeats)]
        self._classes = [i for i, item in enumerate(self.items) if item.is_class for _ in range(item.repeats)]
        rng(seed, "class").shuffle(self._classes)
        self._starts, self._plan = [0], (-1, [])  # first step of each epoch met so far; the batches of the last one asked for

    @property
    def digest(self) -> str:
        """Hash of the items with their contents; a run is not resumed with others."""
        return items_digest(self.items)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches of the first epoch; later ones differ only where class pictures of another bucket have their turn."""
        return self._batch_count(0)

    def prepare(self) -> Iterator[tuple[int, int, str]]:
        """Encodes every view that the run can ask for, one picture at a time, and yields (done, total, picture's name) after each; nothing without a cache."""
        jobs = self._jobs()
        for done, (item, view, number) in enumerate(jobs, start=1):
            self.cache.get(item, view, None if number is None else self.holes.variant(number, item.digest, view.bucket))
            yield done, len(jobs), item.name

    @property
    def encoded(self) -> list[tuple[int, int]]:
        """The size (W, H) of each latent that `prepare` makes."""
        return [view.bucket for _, view, _ in self._jobs()]

    def _jobs(self) -> list[tuple[Item, View, int | None]]:
        """What is encoded beforehand: each view, and what each of its masks leaves of it."""
        if self.cfg.cache == "off":
            return []
        numbers = (None, *range(self.holes.cfg.variants)) if self.holes else (None,)
        return [(item, view, number) for i, item in enumerate(self.items) for view in self._views(i) for number in numbers]

    def at(self, step: int, rank: int = 0, world: int = 1, update: int | None = None) -> Batch:
        """The examples of one step that process `rank` of `world` computes; all processes share a batch of `cfg.batch`.

        `update`: the weight update the step belongs to, where gradients are accumulated; the token warm-up counts these.
        """
        check_world(self.cfg, world)
        epoch, start = self._locate(step)
        chosen = list(enumerate(self._epoch(epoch)[step - start], start=step * self.cfg.batch))
        shape = self._buckets[chosen[0][1]]
        mine = chosen[rank::world]
        views = [self._view(i, index) for index, i in mine]
        entries = [self.cache.get(self.items[i], view) for (_, i), view in zip(mine, views)]
        latents = [e.sample(self.cfg.latent, self.seed, self.items[i].digest, index) for e, (index, i) in zip(entries, mine)]
        extra = torch.stack([self._extra(i, index, view) for view, (index, i) in zip(views, mine)]) if self.holes and mine else None
        return Batch(
            indices=tuple(index for index, _ in mine),
            latents=torch.stack(latents) if latents else torch.zeros(0, 4, *(side // self.cache.vae.factor for side in reversed(shape))),
            captions=[self._caption(i, index, step if update is None else update) for index, i in mine],
            weights=torch.tensor([self.items[i].weight for _, i in mine]),
            mask=seen_less(stack_masks(entries, self.cfg.mask_floor), extra, self.holes),
            items=[self.items[i] for _, i in mine],
            views=views,
            hint=stack_hints(self.hints, [self.items[i] for _, i in mine], views),
            extra=extra,
        )

    def summary(self) -> dict[str, Any]:
        """What the data consist of, under the names that kohya's metadata and the WebUI's LoRA card use."""
        train = [item for item in self.items if not item.is_class]
        count = Counter(self._buckets[i] for i in self._epoch_samples(0))
        frequency = {
            name: Counter(tag.lower() for item in group for tag in self.prompts.tags(item)).most_common() for name, group in _by_folder(self.items).items()
        }
        return {
            "pictures": len(train),
            "class_pictures": len(self.items) - len(train),
            "ss_num_train_images": len(self._subjects),
            "ss_num_reg_images": len(self._classes),
            "ss_num_batches_per_epoch": self.steps_per_epoch,
            "ss_dataset_dirs": _folders(train),
            "ss_reg_dataset_dirs": _folders([item for item in self.items if item.is_class]),
            "ss_bucket_info": {"buckets": {str(n): {"resolution": list(size), "count": count[size]} for n, size in enumerate(sorted(count))}},
            "ss_tag_frequency": {folder: dict(tags) for folder, tags in frequency.items()},
        }

    # ---- epochs ------------------------------------------------------------------------------------------------------

    @property
    def _class_count(self) -> int:
        """How many class pictures an epoch has, so that they are `class_share` of it."""
        share = self.cfg.class_share
        return max(1, round(len(self._subjects) * share / (1 - share))) if self._classes and share else 0

    def _epoch_samples(self, epoch: int) -> list[int]:
        """Indices of items, unshuffled; the class pictures take turns over the epochs."""
        n, classes = self._class_count, self._classes
        return self._subjects + [classes[(epoch * n + j) % len(classes)] for j in range(n)]

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as indices of items: shuffled, grouped by bucket, cut, and shuffled again."""
        if self._plan[0] != epoch:
            random, samples, groups = rng(self.seed, "epoch", epoch), self._epoch_samples(epoch), defaultdict(list)
            random.shuffle(samples)
            for i in samples:
                groups[self._buckets[i]].append(i)
            batches = [group[at : at + self.cfg.batch] for group in groups.values() for at in range(0, len(group), self.cfg.batch)]
            random.shuffle(batches)
            self._plan = epoch, batches
        return self._plan[1]

    def _batch_count(self, epoch: int) -> int:
        return sum(-(-n // self.cfg.batch) for n in Counter(self._buckets[i] for i in self._epoch_samples(epoch)).values())

    def _locate(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and the epoch's first step. Epochs differ in length only where class pictures take turns."""
        if not self._class_count:
            epoch, _ = divmod(step, self.steps_per_epoch)
            return epoch, epoch * self.steps_per_epoch
        while self._starts[-1] <= step:
            self._starts.append(self._starts[-1] + self._batch_count(len(self._starts) - 1))
        epoch = bisect_right(self._starts, step) - 1
        return epoch, self._starts[epoch]

    # ---- one sample --------------------------------------------------------------------------------------------------

    def _caption(self, i: int, index: int, step: int) -> str:
        return self.prompts.caption(self.items[i], rng(self.seed, "caption", index), step)

    def _extra(self, i: int, index: int, view: View) -> Tensor:
        """(5, h, w): what sample `index` hides of item `i`, and a latent of the rest."""
        digest = self.items[i].digest
        hole = self.holes.of_sample(index, digest, view.bucket, self.cfg.cache != "off")
        if hole.all():
            return self.cache.all_hidden(view.bucket)
        return channels(hole, self.cache.get(self.items[i], view, hole).sample(self.cfg.latent, self.seed, digest, index, SEEN))

    def _view(self, i: int, index: int) -> View:
        """How sample `index` sees item `i`."""
        random = rng(self.seed, "view", index)
        flip = random.random() < 0.5 and self._may_flip(i)
        shift = random.choice(self._shifts(i)) if self.cfg.cache != "off" else self._shift(random)  # nothing cached: no need to reuse crops
        return self._view_of(i, shift, flip)

    def _views(self, i: int) -> list[View]:
        """All views of item `i` that a sample can have, each once."""
        flips = (False, True) if self._may_flip(i) else (False,)
        return [self._view_of(i, shift, flip) for shift in dict.fromkeys(self._shifts(i)) for flip in flips]

    def _view_of(self, i: int, shift: tuple[int, int], flip: bool) -> View:
        room = self.cfg.crop_jitter
        return View(self._buckets[i], shift, room, self.cfg.upscale or not room, flip)

    def _shifts(self, i: int) -> list[tuple[int, int]]:
        if not self.cfg.crop_jitter:
            return [(0, 0)]
        random = rng(self.seed, "crop", self.items[i].digest)
        return [self._shift(random) for _ in range(self.cfg.crop_variants)]

    def _shift(self, random: Any) -> tuple[int, int]:
        far = self.cfg.crop_jitter
        return random.randint(-far, far), random.randint(-far, far)

    def _may_flip(self, i: int) -> bool:
        return self.cfg.flip == "all" or (self.cfg.flip == "safe" and not mirrored.NAMED.search(self.items[i].caption))


def check_world(cfg: DataConfig, world: int) -> None:
    """Raises ValueError where so many processes could not share a batch; nothing has to be read to see that."""
    if world > cfg.batch:
        raise ValueError(f"data.batch: {cfg.batch} cannot be shared by {world} processes; set it to at least {world}.")


def validation(cfg: DataConfig, sd: Any, trigger: str = "", hints: Hints | None = None, holes: Holes | None = None) -> list[Batch]:
    """The held-out pictures in batches of one bucket: centre crops, latent means, captions without anything random. Empty without a folder for them."""
    if not cfg.validation_folder:
        return []
    items, _ = with_hints(scan(plain(cfg), cfg.validation_folder), hints)
    return fixed(cfg, sd, items, trigger, hints, holes)


def fixed(cfg: DataConfig, sd: Any, items: list[Item], trigger: str = "", hints: Hints | None = None, holes: Holes | None = None) -> list[Batch]:
    """Pictures as `validation` has them: nothing is random, so that they are the same in every run."""
    captions = dict(zip(items, fixed_captions(cfg, items, trigger)))
    cache = LatentCache(sd.vae, "disk" if cfg.cache == "disk" else "off", cache_folder(cfg), cfg.masks)
    groups: dict[tuple[int, int], list[Item]] = defaultdict(list)
    for item in items:
        groups[bucket_for(item.size, cfg)].append(item)
    parts = [(size, group[at : at + cfg.batch]) for size, group in groups.items() for at in range(0, len(group), cfg.batch)]
    batches, first = [], 0
    for size, part in parts:
        views = [View(size)] * len(part)
        entries = [cache.get(item, view) for item, view in zip(part, views)]
        latents, mask = torch.stack([entry.mean for entry in entries]), stack_masks(entries, cfg.mask_floor)
        extra = torch.stack([_held_extra(cache, item, view, holes) for item, view in zip(part, views)]) if holes else None
        indices = tuple(range(first, first + len(part)))
        batches.append(Batch(indices, latents, [captions[item] for item in part], torch.ones(len(part)), mask, part, views, stack_hints(hints, part, views), extra))
        first += len(part)
    return batches


def fixed_captions(cfg: DataConfig, items: list[Item], trigger: str = "") -> list[str]:
    """The captions of `fixed`; of a template and of wildcards always the same choice."""
    prompts = Prompts(plain(cfg), trigger)
    return [prompts.caption(item, rng("validation", item.digest)) for item in items]


def plain(cfg: DataConfig) -> DataConfig:
    """The settings without what makes examples differ from each other."""
    return replace(cfg, shuffle_tags=False, tag_dropout=0.0, caption_dropout=0.0, token_warmup=0, repeats=1, class_folder="")


def _held_extra(cache: LatentCache, item: Item, view: View, holes: Holes) -> Tensor:
    hole = holes.of_validation(item.digest, view.bucket)
    return cache.all_hidden(view.bucket) if hole.all() else channels(hole, cache.get(item, view, hole).mean)


def find_items(cfg: DataConfig) -> tuple[list[Item], list[Problem]]:
    """Subject and class pictures of the settings' folders; a picture that is also held out for validation is left out."""
    items, problems = scan(cfg, cfg.folder)
    if cfg.class_folder:
        more, issues = scan(cfg, cfg.class_folder, is_class=True)
        items, problems = items + more, problems + issues
    if cfg.validation_folder:
        held, issues = scan(cfg, cfg.validation_folder)
        digests = {item.digest for item in held}
        problems += issues + [Problem(i.path, "is held out for validation, so it is not trained on", "held out") for i in items if i.digest in digests]
        items = [item for item in items if item.digest not in digests]
    problems += _masks_lacking(cfg, items)
    if all(item.is_class for item in items):
        raise ValueError(f"data.validation_folder: {cfg.validation_folder!r} holds every picture of data.folder; leave some to train on.")
    return items, problems


def _masks_lacking(cfg: DataConfig, items: list[Item]) -> list[Problem]:
    """Where masks are asked for and there are none, or only for some; class pictures need none."""
    masked = [bool(item.mask or item.has_alpha) for item in items]
    own = [has for has, item in zip(masked, items) if not item.is_class]
    if not cfg.masks or own and all(own):
        return []
    if not any(masked):
        return [Problem(absolute(cfg.folder), "has no mask and no picture with transparency, so the masked loss changes nothing", "masks")]
    return [Problem(absolute(cfg.folder), f"has masks for {sum(own):,} of {len(own):,} pictures; the others are learned whole", "masks")] if any(own) else []


def with_hints(found: tuple[list[Item], list[Problem]], hints: Hints | None) -> tuple[list[Item], list[Problem]]:
    """Items and problems of a scan, with what a method's hints make of them."""
    if hints is None:
        return found
    items, problems = hints.paired(found[0])
    return items, [p for p in found[1] if not hints.holds(p.path)] + problems


def stack_hints(hints: Hints | None, items: list[Item], views: list[View]) -> Tensor | None:
    """(B, 3, H, W); None where there are none."""
    return torch.stack([hints.of(item, view) for item, view in zip(items, views)]) if hints and items else None


def cache_folder(cfg: DataConfig) -> Path:
    """Where a disk cache lies: beside the data, not among them."""
    return expanded(cfg.cache_folder) if cfg.cache_folder else absolute(cfg.folder).parent / ".latents"


def stack_masks(entries: list[Entry], floor: float) -> Tensor | None:
    """(B, 1, h, w) in [floor, 1], ones for pictures without a mask; None where none has one. m = clamp(mask, floor, 1) is OneTrainer's masked loss."""
    if all(entry.mask is None for entry in entries):
        return None
    return torch.stack([torch.ones_like(e.mean[:1]) if e.mask is None else e.mask.clamp(floor, 1.0) for e in entries])


def seen_less(mask: Tensor | None, extra: Tensor | None, holes: Holes | None) -> Tensor | None:
    """The loss's mask (B, 1, h, w) with what an inpainting model sees weighed less, where the settings say so."""
    if extra is None or holes.cfg.outside == 1:
        return mask
    weight = extra[:, :1].clamp(min=holes.cfg.outside)
    return weight if mask is None else weight * mask


def _folders(items: list[Item]) -> dict[str, dict[str, int]]:
    return {name: {"n_repeats": group[0].repeats, "img_count": len(group)} for name, group in _by_folder(items).items()}


def _by_folder(items: list[Item]) -> dict[str, list[Item]]:
    """The items of each folder under its last name, for what leads to it is nobody's business; a second of that name becomes `name (2)`, as in kohya."""
    groups: dict[Path, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.path.parent].append(item)
    named: dict[str, list[Item]] = {}
    for folder, group in groups.items():
        same = sum(name == folder.name or name.startswith(f"{folder.name} (") for name in named)
        named[f"{folder.name} ({same + 1})" if same else folder.name] = group
    return named
