"""AdaLoRA: the budget is peft's, importance and orthogonality are the paper's, and what is left is an ordinary LoRA."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib_tuner.methods import settings
from lib_tuner.methods.adalora import AdaLoRA, Importance, budget
from lib_tuner.methods.lora_file import read_lora
from lib_tuner.methods.metadata import Made

MADE = Made(step=1, epoch=0, started=0.0, finished=1.0)
STEPS = 20


def adalora(**own) -> AdaLoRA:
    given = {"rank": 2, "first_rank": 4, "blocks": "M00, OUT05", "share_from": 0.2, "share_until": 0.8, "share_every": 3, **own}
    return AdaLoRA(settings({"data.folder": "x", "method": "adalora", "steps": STEPS, **{f"adalora.{key}": value for key, value in given.items()}}))


def trained(method: AdaLoRA, sd, steps: range = range(STEPS)) -> None:
    """Steps with gradients of a loss that wants some layers more than others."""
    method.begin(SimpleNamespace(indices=(0,)))
    params = [p for group in method.groups() for p in group["params"]]
    for step in steps:
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(step))
        for p in params:
            p.grad = None
        ((sd.unet(x, torch.tensor([300]), sd.text(["a"])) - 1).square().mean() + method.extra_loss()).backward()
        with torch.no_grad():
            for p in params:
                p -= 0.05 * p.grad / (p.grad.norm() + 1e-12)
        method.after_step(step + 1)


@pytest.mark.parametrize("start, end", [(0, 100), (10, 70), (5, 90)])
def test_the_budget_is_peft_s(start, end):
    allocator = pytest.importorskip("peft.tuners.adalora.layer").RankAllocator
    theirs = SimpleNamespace(peft_config=SimpleNamespace(tinit=start, tfinal=100 - end, total_step=100), init_bgt=12 * 7, target_bgt=8 * 7)
    theirs.peft_config.deltaT = 1
    for step in range(1, 101):
        assert budget(step, 100, 12 * 7, 8 * 7, start, end) == allocator.budget_schedule(theirs, step)[0]


def test_importance_is_the_paper_s_number_by_number(sd):
    method = adalora()
    with method.attached(sd):
        layer = next(iter(method.layers.values()))
        found = Importance([layer], 0.85)
        mean, uncertain = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}, {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
        for seed in range(3):
            for i, p in enumerate(layer.parameters()):
                p.data.normal_(generator=torch.Generator().manual_seed(seed * 10 + i))
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed * 10 + i + 5))
            found.look()
            for name, p in layer.named_parameters():
                now = (p * p.grad).abs().detach()
                mean[name] = 0.85 * mean[name] + 0.15 * now
                uncertain[name] = 0.85 * uncertain[name] + 0.15 * (now - mean[name]).abs()
        each = {name: mean[name] * uncertain[name] for name in mean}
        wanted = [each["lam"][i] + each["q"][i].mean() + each["p"][:, i].mean() for i in range(layer.rank)]
        torch.testing.assert_close(found.scores()[0], torch.stack(wanted))


def test_gradients_without_end_are_worth_nothing(sd):
    method = adalora()
    with method.attached(sd):
        layer = next(iter(method.layers.values()))
        found = Importance([layer], 0.5)
        layer.lam.data.fill_(1.0)
        layer.lam.grad = torch.tensor([float("inf"), float("nan"), 1.0, 2.0])
        found.look()
        assert all(score.isfinite().all() for score in found.scores())


def test_the_term_keeps_directions_orthogonal(sd):
    method = adalora(orthogonal=0.5)
    with method.attached(sd):
        terms = []
        for layer in method.layers.values():
            q, p = layer.q.flatten(1), layer.p
            terms += [torch.linalg.norm(q @ q.t() - torch.eye(len(q))), torch.linalg.norm(p.t() @ p - torch.eye(len(q)))]
        torch.testing.assert_close(method.extra_loss(), 0.5 * torch.stack(terms).mean())
    assert adalora(orthogonal=0.0).extra_loss() == 0.0


def test_ranks_are_shared_out_exactly_and_stay_from_then_on(sd):
    method, seen = adalora(), []
    with method.attached(sd):
        count = len(method.layers)
        for step in range(STEPS):
            trained(method, sd, range(step, step + 1))
            seen.append(sum(method.ranks().values()))
            if step + 1 == 16:
                settled = method.ranks()
        assert seen[:3] == [4 * count] * 3 and seen[15:] == [2 * count] * 5 and seen == sorted(seen, reverse=True)
        assert method.ranks() == settled and len(set(settled.values())) > 1  # not the same everywhere: else nothing was shared out
        for layer in method.layers.values():
            assert not layer.lam[~layer.alive].any()


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.0, 0.04), (0.1, 0.1), (1.0, 1.0)])
def test_what_is_to_be_left_is_left_however_early_or_late_it_is_settled(sd, start, end):
    method = adalora(share_from=start, share_until=end)
    with method.attached(sd):
        for step in range(1, 21):
            method.after_step(step)
        assert sum(method.ranks().values()) == 2 * len(method.layers)


def test_what_is_left_is_an_ordinary_lora_largest_first(sd, tmp_path):
    method = adalora(save_dtype="fp32")
    with method.attached(sd):
        trained(method, sd)
        ranks = method.ranks()
        gone = next(iter(method.layers))
        method.layers[gone].alive.fill_(False)
        method.layers[gone].lam.data.zero_()
        file = read_lora(method.export(tmp_path / "x", {}, MADE)[0])
        assert file.ranks == {target: rank for target, rank in ranks.items() if rank and target != gone} and gone not in file.modules
        for target, parts in file.modules.items():
            up, down, layer = parts["lora_up.weight"].flatten(1), parts["lora_down.weight"].flatten(1), method.layers[target]
            torch.testing.assert_close(up @ down * float(parts["alpha"]) / len(down), layer.delta_weight().flatten(1).detach())
            torch.testing.assert_close(layer.as_saved(torch.float32).delta_weight(), layer.delta_weight())
            worth = (layer.lam.abs() * layer.alive).sort(descending=True).values[: len(down)]
            order = [int(((layer.q.flatten(1) - row).abs().sum(1)).argmin()) for row in down]
            torch.testing.assert_close(layer.lam.abs()[order], worth)


def test_a_resumed_run_shares_out_as_the_whole_one(sd):
    whole, half, rest = adalora(), adalora(), adalora()
    with whole.attached(sd):
        trained(whole, sd)
        wanted = whole.state_dict()
    with half.attached(sd):
        trained(half, sd, range(8))
        kept = half.state_dict()
    with rest.attached(sd):
        rest.load_state_dict(kept)
        trained(rest, sd, range(8, STEPS))
        found = rest.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[a][b], wanted[a][b]) for a in wanted for b in wanted[a])


def test_a_lora_goes_on_as_one_whose_ranks_are_shared_out(sd, tmp_path):
    from lib_tuner.methods.lora import LoRA

    first = LoRA(settings({"data.folder": "x", "method": "lora", "lora.rank": 3, "lora.alpha": 5.0, "lora.blocks": "M00", "lora.conv_rank": 2, "lora.save_dtype": "fp32"}))
    with first.attached(sd):
        for layer in first.layers.values():
            layer.up.data.normal_()
        path = first.export(tmp_path / "x", {}, MADE)[0]
        changes = {target: layer.delta_weight().detach() for target, layer in first.layers.items()}
    other = adalora(start=str(path), first_rank=4)
    with other.attached(sd):
        assert other.layers.keys() == changes.keys()
        for target, layer in other.layers.items():
            torch.testing.assert_close(layer.delta_weight(), changes[target], rtol=1e-3, atol=1e-4)
            assert layer.rank == 4


@pytest.mark.parametrize("own, sentence", [({"first_rank": 1}, "first_rank: "), ({"share_until": 0.1}, "share_until: "), ({"dora": True, "alpha": 2.0}, "dora: ")])
def test_what_does_not_go_together_is_one_sentence(own, sentence):
    with pytest.raises(ValueError, match=sentence):
        adalora(**own)


def test_a_rank_that_is_gone_is_not_drawn_where_an_average_still_remembers_it(sd):
    """While it learns such a rank takes part, since it may come back; the file has not got it."""
    method = adalora()
    with method.attached(sd):
        layer = method.layers["unet", "middle_block.1.transformer_blocks.0.attn1.to_q"]
        layer.lam.data.fill_(0.3)
        layer.alive[1] = False
        x, parts = torch.randn(2, 5, layer.shape[1]), layer.tensors()
        left = parts["lora_up.weight"] @ parts["lora_down.weight"] * parts["alpha"] / len(parts["lora_down.weight"])
        assert not torch.allclose(layer(x), x @ left.t(), rtol=1e-2)
        method.train(False)
        torch.testing.assert_close(layer(x), x @ left.t())
        torch.testing.assert_close(layer.delta_weight(), left)
        torch.testing.assert_close(layer.as_saved(torch.float32).delta_weight(), left)
