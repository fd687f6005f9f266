"""The benchmark: both sides do the same work, take turns in processes of their own, and the rows say what was measured."""

import importlib
import json
import math
import os
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from lib_tuner import bench
from lib_tuner.bench import Child, Comparison, Pair, comparisons
from lib_tuner.bench_memory import process_peak
from lib_tuner.bench_worker import RANK, VECTORS, WORD, Drawn, Ours, Side, Worker, config_for
from lib_tuner.hosts.standalone import Standalone

SIZE = 64
TIGHT = 1e-5  # what a small model allows, where the benchmark itself asks for 1e-3


@pytest.fixture
def side(checkpoint_file, tmp_path):
    """A side over two small pictures: `side("ours", "lora")`."""
    bench.draw_pictures(tmp_path / "pictures", SIZE, 2)
    return lambda who, task, precision="fp32": Side(who, task, SIZE, precision, checkpoint_file, tmp_path, 2)


@pytest.fixture
def worker(side):
    """A side ready to be timed, in this process: `worker("ours", "lora")`."""
    with ExitStack() as made:

        def make(*wanted):
            worker = bench.make_worker(side(*wanted), Standalone)
            made.callback(worker.close)
            return worker

        yield make


@pytest.fixture
def both(worker, tmp_path):
    """Our side and the peer's, from the same start."""
    for package in ("diffusers", "transformers", "peft"):
        pytest.importorskip(package)

    def make(task, precision="fp32"):
        ours, peer = worker("ours", task, precision), worker("peer", task, precision)
        ours.save_start(tmp_path / "start.pt")
        peer.load_start(tmp_path / "start.pt")
        return ours, peer

    return make


# ---- the same work


@pytest.mark.parametrize("task", bench.TASKS)
def test_both_sides_have_the_same_losses_before_and_after_updates(both, task):
    ours, peer = both(task)
    mine, theirs = ours.run(0, 4)[2], peer.run(0, 4)[2]
    assert bench.loss_difference(mine, theirs) < TIGHT
    assert bench.loss_difference(mine[1:], theirs[:-1]) > 1e-3  # other noise at every update: an exchange would show


@pytest.mark.parametrize("task, tolerance", [("lora", 1e-3), ("textual_inversion", 1e-3)])
def test_both_sides_end_with_the_same_weights(both, task, tolerance):
    ours, peer = both(task)
    before = flat(ours.start())
    ours.run(0, 3), peer.run(0, 3)
    mine, theirs = flat(ours.start()), flat(peer.start())
    moved = max(float((mine[key] - before[key]).abs().max()) for key in theirs)
    apart = torch.cat([(mine[key] - theirs[key]).flatten() for key in theirs])
    assert moved > 1e-4
    assert float(apart.square().mean().sqrt()) < 0.05 * moved  # Adam turns gradients of rounding size into whole steps, so a few may differ


def flat(start):
    return {(a, b): tensor.detach().clone() for a, part in start.items() for b, tensor in part.items() if b in ("down", "up", "vectors")}


def test_the_lora_is_on_the_same_192_modules_with_as_many_weights(both):
    ours, peer = both("lora")
    assert len(ours.start()) == 192 and ours.start().keys() == peer.start().keys()
    count = sum(p.numel() for group in ours.method.groups() for p in group["params"])
    assert count == sum(p.numel() for p in peer.params)
    assert all(state["down"].shape[0] == RANK for state in ours.start().values())


def test_a_peers_embedding_trains_its_own_rows_alone(both):
    _, peer = both("textual_inversion")
    first = peer.table.weight.detach().clone()
    peer.run(0, 1)
    changed = (peer.table.weight != first).any(dim=1)
    assert changed[-VECTORS:].all() and not changed[:-VECTORS].any()


def test_another_start_is_not_the_same_work(both):
    ours, peer = both("textual_inversion")
    torch.manual_seed(0)
    loss, others = ours.run(0, 1)[2], []
    for _ in range(5):  # of random weights, a single word says little in some starts
        peer.take_start({WORD: {"vectors": torch.randn(VECTORS, peer.table.weight.shape[1])}})
        others.append(bench.loss_difference(loss, peer.run(0, 1)[2]))
    assert max(others) > bench.SAME["float32"], others


def test_bf16_on_both_sides_is_nearly_the_same_work(both):
    ours, peer = both("lora", "bf16")
    assert ours.dtype() == peer.dtype() == "bfloat16"
    assert all(p.dtype == torch.float32 for p in peer.params)
    assert bench.loss_difference(ours.run(0, 2)[2], peer.run(0, 2)[2]) < bench.SAME_HALF


@pytest.mark.parametrize("who", ["ours", "peer"])
def test_the_passes_are_the_unets_forward_and_the_whole_backward(worker, who):
    """Both passes are made longer by a known time, and so is the loop around them; only the first two may be counted."""
    side = worker(who, "lora")
    unet = side.host.sd.unet if who == "ours" else side.unet
    last = unet.out[2] if who == "ours" else unet.conv_out
    last.register_forward_hook(lambda *_: time.sleep(0.3))
    last.register_full_backward_hook(lambda *_: time.sleep(0.5))
    update = side.update
    side.update = lambda number, given: (time.sleep(1.0), update(number, given))[1]
    side.run(0, 1)
    seconds, passes, _ = side.run(1, 1)
    assert 0.8 < passes < seconds - 1.0 and passes < 1.7


def test_every_batch_has_all_pictures_and_the_words_trigger(side):
    drawn = Drawn(config_for(side("peer", "textual_inversion")), "cpu")
    for number in (0, 1):
        given = drawn.at(number)
        assert given.x0.shape == (2, 4, SIZE // 8, SIZE // 8) and given.t.shape == (2,)
        assert all(WORD in caption for caption in given.captions) and len(set(given.captions)) == 2
    assert not any(WORD in caption for caption in Drawn(config_for(side("peer", "lora")), "cpu").at(0).captions)


# ---- what is measured


def test_quick_is_256_px_in_two_comparisons_on_a_cpu():
    quick = comparisons(True, bf16=True, cuda=False)
    assert [(c.task, c.size, [p.precision for p in c.pairs]) for c in quick] == [(task, 256, ["fp32", "default"]) for task in bench.TASKS]


def test_all_sizes_and_precisions_are_in_the_full_run_one_row_at_a_time():
    full = comparisons(False, bf16=True, cuda=False)
    got = {(c.task, c.size, pair.precision, pair.peer) for c in full for pair in c.pairs}
    want = {(t, s, *p) for t in bench.TASKS for s in (256, 512) for p in (("fp32", "fp32"), ("default", "fp32"), ("bf16", "bf16"))}
    assert got == want and all(len(c.pairs) == 1 for c in full)
    assert not any(pair.precision == "bf16" for c in comparisons(False, bf16=False, cuda=False) for pair in c.pairs)


def test_a_gpu_is_measured_too_in_bf16_at_batch_1_and_8():
    extra = [c for c in comparisons(False, bf16=False, cuda=True) if c.device == "cuda"]
    assert {(c.task, c.size, c.batch) for c in extra} == {(t, s, b) for t in bench.TASKS for s in (256, 512) for b in (1, 8)}
    assert {pair for c in extra for pair in c.pairs} == {Pair("default", "bf16")}
    assert {c.size for c in comparisons(True, bf16=False, cuda=True)} == {256}


def test_rows_of_one_comparison_share_a_peer_and_ours_come_first(tmp_path):
    both_rows = Comparison("lora", 256, (Pair("fp32", "fp32"), Pair("default", "fp32")))
    assert [(s.who, s.precision) for s in bench.sides(both_rows, tmp_path, tmp_path)] == [("ours", "fp32"), ("ours", "auto"), ("peer", "fp32")]


class Fake:
    """A child without a process: `cost` seconds per turn on a clock of its own."""

    def __init__(self, log, name="", cost=0.0, losses=(1.0,), clock=None):
        self.log, self.name, self.cost, self.clock = log, name, cost, clock
        self.number, self.seconds, self.passes, self.losses = 0, [], [], list(losses)

    def turn(self, count, warm_up=False):
        self.log.append(self.name)
        self.number += count
        if self.clock:
            self.clock.now += self.cost
        if not warm_up:
            self.seconds.append(self.cost)

    def ask(self, method, *arguments):
        self.log.append(method)
        return {"dtype": "float32", "peak": 2.5}[method]


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock.now)
    return clock


def test_the_sides_take_turns_after_one_to_warm_up(clock):
    log = []
    a, b = Fake(log, "a"), Fake(log, "b")
    bench.take_turns([a, b], 3, 1, math.inf, lambda n: None)
    assert "".join(log) == "ab" * 4 and len(a.seconds) == len(b.seconds) == 3


@pytest.mark.parametrize("ends, rounds", [(0.0, 2), (39.0, 2), (40.0, 3), (math.inf, 5)])
def test_rounds_end_in_time_but_never_before_two(clock, ends, rounds):
    children = [Fake([], "a", 4.0, clock=clock), Fake([], "b", 6.0, clock=clock)]
    bench.take_turns(children, 5, 1, ends, lambda n: None)
    assert len(children[0].seconds) == rounds


def test_a_row_has_medians_their_ratio_and_whether_it_was_the_same_work():
    what, pair = Comparison("lora", 512, (), 1), Pair("default", "fp32")
    ours, peer = Fake([], losses=[1.0, 2.0]), Fake([], losses=[1.0, 2.001])
    ours.seconds, ours.passes, peer.seconds = [1.0, 9.0, 2.0], [1.0, 9.0, 2.0], [4.0, 4.0, 5.0]
    row = bench.row(what, pair, ours, peer)
    expected = {"task": "lora", "size": 512, "precision": "default", "ours_s": 2.0, "peer": "diffusers+peft", "peer_s": 4.0, "ratio": 0.5}
    assert {key: row[key] for key in expected} == expected
    assert (row["ours_gb"], row["batch"], row["device"], row["same_work"]) == (2.5, 1, "cpu", True)
    peer.losses[0] = 1.002
    assert bench.row(what, pair, ours, peer)["same_work"] is False
    peer.losses[0] = math.nan
    assert bench.row(what, pair, ours, peer)["same_work"] is False


def test_the_loops_share_is_what_an_update_costs_beyond_its_passes():
    ours, peer = Fake([]), Fake([])
    ours.seconds, ours.passes, peer.seconds = [1.0, 2.0, 4.0], [0.97, 1.96, 2.0], [1.0]
    assert bench.row(Comparison("lora", 256, ()), Pair("default", "fp32"), ours, peer)["loop"] == pytest.approx(0.03)
    assert bench.row(Comparison("textual_inversion", 256, ()), Pair("default", "fp32"), ours, peer)["loop"] is None


# ---- processes


class Echo:
    """A worker that measures nothing; made in the child."""

    def __init__(self, side, host):
        sys.stdout.write("noise of a library")
        sys.stdout.flush()

    def double(self, number):
        return 2 * number

    def close(self):
        pass

    def die(self):
        os._exit(3)


def test_a_child_answers_ends_and_keeps_stdout_clean(side, capfd):
    child = Child(side("ours", "lora"), None, Echo)
    try:
        assert child.answer() is None and child.ask("double", 21) == 42
        with pytest.raises(ChildProcessError, match=r"measures ours lora at 64 px in fp32 ended early \(exit code 3\)"):
            child.ask("die")
    finally:
        child.end()
    assert not child.process.is_alive() and capfd.readouterr().out == ""


def test_the_peak_is_this_processs_own():
    before = process_peak()
    block = bytearray(300_000_000)
    assert process_peak() >= max(before, len(block) / 1e9)


# ---- the command


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """`main` with everything that takes time replaced."""
    row = {"task": "lora", "size": 256, "precision": "fp32", "ours_s": 1.0, "peer": bench.PEER, "peer_s": 2.0, "ratio": 0.5, "ours_gb": 4.0, "peer_gb": None,
           "batch": 1, "device": "cpu", "same_work": True}  # fmt: skip
    monkeypatch.setattr(bench, "random_weights", lambda path, status: path)
    monkeypatch.setattr(bench, "measure", lambda *given: [dict(row)])
    monkeypatch.setattr(bench, "_check_peers", lambda: None)
    monkeypatch.setattr(bench, "REPORTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return row


def test_json_is_the_list_of_rows_alone(measured, capsys):
    assert bench.main(SimpleNamespace(quick=True, json=True), Standalone) == 0
    assert json.loads(capsys.readouterr().out) == [measured] * 2


def test_the_table_has_a_line_per_row_and_units(measured, capsys):
    bench.main(SimpleNamespace(quick=True, json=False), Standalone)
    heading, first, *_ = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["task", "px", "batch"] and first.split() == "lora 256 1 cpu fp32 1 s 2 s 0.50 4.0 GB yes".split()


def test_other_work_is_an_error_of_the_command(measured, capsys):
    measured["same_work"] = False
    assert bench.main(SimpleNamespace(quick=True, json=False), Standalone) == 1
    assert "NO" in capsys.readouterr().out


@pytest.fixture
def gpu(measured, monkeypatch):
    """The same on a machine with a GPU, whose second comparison loses a process; what comes before and after is measured."""
    done, gone = [], "The process that measures peer lora at 256 px in fp32 was killed."

    def measure(what, *given):
        done.append(what)
        if len(done) == 2:
            raise ChildProcessError(gone)
        return [dict(measured)]

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "has_bf16", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA X 1")
    monkeypatch.setattr(bench, "version", lambda package: "1.0")
    return SimpleNamespace(done=done, gone=gone)


def test_a_process_that_dies_costs_its_own_rows_alone(gpu, measured, capsys, tmp_path):
    assert bench.main(SimpleNamespace(quick=True, json=True), Standalone) == 1
    rows = json.loads(capsys.readouterr().out)
    lost = [row for row in rows if "error" in row]
    assert len(gpu.done) == 6 and rows.count(measured) == 5
    assert [(row["task"], row["size"], row["precision"], row["peer"], row["error"]) for row in lost] == [
        (gpu.done[1].task, 256, pair.precision, bench.PEER, gpu.gone) for pair in gpu.done[1].pairs
    ]
    (report,) = tmp_path.iterdir()
    assert report.name == f"{time.strftime('%Y-%m-%d')}-nvidia-x-1-quick.json" and json.loads(report.read_text(encoding="utf-8"))["rows"] == rows


def test_the_table_says_what_failed_and_why(gpu, capsys):
    bench.main(SimpleNamespace(quick=True, json=False), Standalone)
    told = capsys.readouterr().out
    assert [line.split() for line in told.splitlines() if "failed" in line] == [f"{gpu.done[1].task} 256 1 cpu {pair.precision} failed".split() for pair in gpu.done[1].pairs]
    assert told.count(gpu.gone) == 1


def test_what_is_measured_is_in_the_report_before_the_next_comparison_begins(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "measure", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt) if list(tmp_path.iterdir()) else [{"device": "cpu"}])
    with pytest.raises(KeyboardInterrupt):
        bench.main(SimpleNamespace(quick=False, json=True), Standalone)
    (report,) = tmp_path.iterdir()
    assert report.name == f"{time.strftime('%Y-%m-%d')}-nvidia-x-1-unfinished.json" and len(json.loads(report.read_text(encoding="utf-8"))["rows"]) == 1


def test_a_later_run_of_the_day_leaves_what_an_earlier_one_wrote(gpu, monkeypatch, tmp_path, capsys):
    """Whole or broken off."""
    start, args = f"{time.strftime('%Y-%m-%d')}-nvidia-x-1", SimpleNamespace(quick=False, json=True)
    monkeypatch.setattr(bench, "measure", lambda *given: [{"device": "the first"}])
    assert bench.main(args, Standalone) == 0 and f"Written: {tmp_path / start}.json" in capsys.readouterr().err
    first = (tmp_path / f"{start}.json").read_bytes()
    monkeypatch.setattr(bench, "measure", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt) if (tmp_path / f"{start}-2-unfinished.json").exists() else [{}])
    with pytest.raises(KeyboardInterrupt):
        bench.main(args, Standalone)
    monkeypatch.setattr(bench, "measure", lambda *given: [{"device": "the third"}])
    assert bench.main(args, Standalone) == 0 and f"Written: {tmp_path / start}-3.json" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{start}-2-unfinished.json", f"{start}-3.json", f"{start}.json"]
    assert (tmp_path / f"{start}.json").read_bytes() == first


def test_rows_are_printed_where_their_report_cannot_be_written(gpu, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(bench, "REPORTS", tmp_path / "file" / "reports")
    assert bench.main(SimpleNamespace(quick=True, json=True), Standalone) == 1
    told = capsys.readouterr()
    assert len(json.loads(told.out)) == 5 + len(gpu.done[1].pairs) and told.err.count("The report was not written (") == 1


def test_on_a_gpu_a_turn_gives_back_what_it_leaves_unused_and_takes_it_outside_the_clock(monkeypatch):
    told, clock = [], SimpleNamespace(now=0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: told.append("empty"))
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    worker = Worker()
    worker.device, worker.drawn, worker.passes = torch.device("cuda"), SimpleNamespace(at=lambda number: number), SimpleNamespace(seconds=lambda: 1.0)

    def update(number, given):
        told.append((number, given))
        clock.now += 100.0 if len(told) == 1 else 2.0
        return torch.tensor(float(number))

    worker.update = update
    assert worker.run(7, 3) == (2.0, 1 / 3, [7.0, 8.0, 9.0, 10.0])
    assert told == [(7, 7), (8, 8), (9, 9), (10, 10), "empty"]


def test_quick_gives_each_comparison_its_share_of_the_time_left(measured, clock, monkeypatch):
    shares = []

    def measure(what, weights, host, effort, ends, status):
        shares.append(ends - clock.now)
        clock.now += 30.0
        return []

    monkeypatch.setattr(bench, "measure", measure)
    bench.main(SimpleNamespace(quick=True, json=True), Standalone)
    assert shares == [bench.QUICK.seconds / 2, bench.QUICK.seconds - 30.0]


def test_a_gpu_report_is_dated_and_names_the_versions(tmp_path):
    for package in ("diffusers", "transformers", "peft"):
        pytest.importorskip(package)
    path = bench.write_report(bench.report_place(tmp_path / "new", "NVIDIA X 1"), [{"device": "cpu"}, {"device": "NVIDIA X 1"}], "NVIDIA X 1", True)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == f"{time.strftime('%Y-%m-%d')}-nvidia-x-1.json" and content["packages"]["torch"] == torch.__version__
    assert len(content["rows"]) == 2 and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_missing_peer_is_named(monkeypatch):
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "peft" else importlib.util.find_spec(name))
    with pytest.raises(ValueError, match="peft is not in this Python: install lib_tuner/requirements-test.txt"):
        bench.main(SimpleNamespace(quick=True, json=True), Standalone)


def test_ours_is_the_whole_loop(worker):
    ours = worker("ours", "lora")
    assert isinstance(ours, Ours) and ours.events.gi_frame is not None
    inside = list(ours.host.sd.unet.modules())[1:]  # the first is the UNet itself, whose hooks are the clock's
    hooked = sum(bool(m._forward_hooks) for m in inside)
    ours.close()
    assert hooked == 192 and not any(m._forward_hooks for m in inside)
