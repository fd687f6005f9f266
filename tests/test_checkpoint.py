"""States come back bit for bit, survive a kill at any moment, and say what is wrong; saves are pruned; runs get folders of their own."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import shutil
import signal
import time
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib_tuner import checkpoint
from lib_tuner.checkpoint import SMALL, load, prune, run_folder, save
from lib_tuner.sd import files

INT_OF = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float64: torch.int64}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def same(a, b):
    """Equal in type, value, bits and memory layout."""
    if isinstance(a, torch.Tensor):
        bits = INT_OF.get(a.dtype, a.dtype)
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))
    if isinstance(a, dict):
        return list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and (a.hex() == b.hex())
    return type(a) is type(b) and a == b


def big(step):
    """A state whose every part says its step, large enough that writing it takes a while."""
    return {"step": step, "weights": [torch.full((256, 256), float(step)) for _ in range(4)], "note": "x" * step}


def whole(loaded):
    return loaded.state["step"] == loaded.step == len(loaded.state["note"]) and all(bool((w == loaded.step).all()) for w in loaded.state["weights"])


def names(folder):
    return sorted(p.name for p in (folder / "state").iterdir())


# ---- bit for bit


def test_every_kind_of_value_comes_back_bit_for_bit(tmp_path):
    odd = torch.tensor([float("nan"), -0.0, math.inf, 1e-45])
    odd.view(torch.int32)[0] = 0x7FC12345  # a NaN with a payload of its own
    state = {
        "tensors": [torch.randn(3, 4).to(d) for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)] + [odd],
        "whole": [torch.tensor([2**62, -1]), torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([True, False]), torch.tensor([-7], dtype=torch.int16)],
        "scalars": (torch.tensor(3.5), torch.tensor(2**40), torch.tensor(True)),
        "empty": [torch.empty(0, 5), torch.empty(0), {}, [], (), ""],
        "numbers": [0.1, 1e-310, 2.0**53 + 1, -0.0, math.nan, math.inf, -math.inf, 10**30, -3, True, False, None],
        "nested": {0: {"a": (1, [2, (3,)])}, -5: "minus", "0": "text", (1, "k"): "tuple key", None: "none", True: 1, 2.5: "float"},
        "tags": {"dict": 1, "tuple": [2], "float": "nan", "tensor": "0", "strides": 3},
        "text": "ä \U0001f319 \ud800 \x00 \"\\\n",
    }
    save(tmp_path, 7, state)
    loaded = load(tmp_path)
    assert (loaded.step, loaded.path, loaded.notes) == (7, tmp_path / "state" / "state-7.safetensors", ())
    assert same(state, loaded.state)


def test_memory_layouts_come_back_and_shared_memory_is_no_hindrance(tmp_path):
    base = torch.randn(4, 3, 5, 6)
    state = {
        "last": base.contiguous(memory_format=torch.channels_last), "one": torch.randn(4, 1, 5, 6).contiguous(memory_format=torch.channels_last),
        "turned": base[0, 0].t(), "twice": [base, base], "views": [base[0], base[1:]], "parameter": torch.nn.Parameter(base[2].clone()),
    }
    save(tmp_path, 1, state)
    got = load(tmp_path).state
    assert got["parameter"].requires_grad is False
    assert same({**state, "parameter": state["parameter"].detach()}, got)


def test_what_has_no_dense_memory_comes_back_with_its_values(tmp_path):
    spread, strided = torch.randn(3, 1).expand(3, 4), torch.randn(8)[::2]
    save(tmp_path, 1, {"a": spread, "b": strided})
    got = load(tmp_path).state
    assert torch.equal(got["a"], spread) and torch.equal(got["b"], strided)


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.95), fused=torch.__version__ >= "2.4" or None),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
], ids=["adamw", "sgd"])
def test_an_optimizer_resumes_bit_for_bit(tmp_path, make):
    def weights():
        g = torch.Generator().manual_seed(0)
        conv = torch.randn(8, 4, 3, 3, generator=g).contiguous(memory_format=torch.channels_last)  # fused AdamW walks memory: its averages need this layout too
        return [torch.nn.Parameter(conv), torch.nn.Parameter(torch.randn(5, generator=g))]

    def steps(optimizer, params, first, last):
        for i in range(first, last):
            g = torch.Generator().manual_seed(i)
            for p in params:
                p.grad = torch.randn(p.shape, generator=g).to(memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format)
            optimizer.step()

    params = weights()
    optimizer = make(params)
    steps(optimizer, params, 0, 3)
    save(tmp_path, 3, {"optimizer": optimizer.state_dict(), "weights": [p.detach() for p in params], "scaler": {"scale": 65536.0, "_growth_tracker": 3}})
    saved = copy.deepcopy(optimizer.state_dict())
    steps(optimizer, params, 3, 6)

    state = load(tmp_path).state
    assert same(saved, state["optimizer"])
    again = weights()
    with torch.no_grad():
        for p, value in zip(again, state["weights"]):
            p.copy_(value)
    resumed = make(again)
    resumed.load_state_dict(state["optimizer"])
    steps(resumed, again, 3, 6)
    assert all(map(same, params, again))


def test_the_file_is_one_that_safetensors_reads_with_a_tree_in_standard_json(tmp_path):
    path = save(tmp_path, 12, OrderedDict(a=torch.ones(2), b=math.nan))
    with safe_open(str(path), "pt") as file:
        tree = json.loads(zlib.decompress(file.get_tensor("tree").numpy().tobytes()), parse_constant=pytest.fail)
        assert torch.equal(file.get_tensor("joined torch.float32"), torch.ones(2))
    assert tree == {"step": 12, "state": {"dict": [["a", {"tensor": "0"}], ["b", {"float": "nan"}]]}, "joined": {"joined torch.float32": [["0", [2]]]}}


def test_small_tensors_are_joined_and_come_back_each_with_its_own_memory(tmp_path):
    """A LoRA's state has thousands, and each takes safetensors its time."""
    small = [torch.full((i % 3, 2, 1)[: i % 4], i, dtype=(torch.float32, torch.int64, torch.bfloat16)[i % 3]) for i in range(50)]
    large = torch.arange(SMALL // 4 + 1.0)
    path = save(tmp_path, 1, {"small": small, "large": large, "turned": torch.arange(6.0).view(2, 3).t()})
    with safe_open(str(path), "pt") as file:
        assert len(file.keys()) == 1 + 3 + 1
    state = load(tmp_path).state
    assert same(state["large"], large) and all(map(same, state["small"], small)) and same(state["turned"], torch.arange(6.0).view(2, 3).t())
    assert len({tensor.untyped_storage().data_ptr() for tensor in state["small"] if tensor.numel()}) == sum(tensor.numel() > 0 for tensor in small)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state["small"])


def test_a_data_set_larger_than_a_files_header_is_kept(tmp_path):
    """safetensors takes 100 MB there, which is less than the captions of some data sets."""
    rows = [f"{'caption ' * 40}{number} \udce9 é" for number in range(400_000)]
    path = save(tmp_path, 1, {"items": rows, "weights": torch.arange(3.0)})
    assert path.stat().st_size < 40e6 and load(tmp_path).state["items"] == rows


def test_a_state_of_the_first_version_is_read(tmp_path):
    """It had the tree in the header."""
    (tmp_path / "state").mkdir()
    weights, tree = torch.arange(3.0), json.dumps({"step": 4, "state": {"dict": [["a", {"tensor": "0"}]]}})
    crc = zlib.crc32(weights.numpy().tobytes(), zlib.crc32(b"0 torch.float32 [3]", zlib.crc32(tree.encode())))
    save_file({"0": weights}, str(tmp_path / "state" / "state-4.safetensors"), {"tuner_state": "1", "tree": tree, "crc32": str(crc)})
    assert load(tmp_path).step == 4 and torch.equal(load(tmp_path).state["a"], weights)


def test_a_state_of_the_second_version_is_read(tmp_path):
    """It had each tensor by itself."""
    (tmp_path / "state").mkdir()
    weights, tree = torch.arange(3.0), json.dumps({"step": 5, "state": {"dict": [["a", {"tensor": "0"}]]}}).encode()
    crc = zlib.crc32(weights.numpy().tobytes(), zlib.crc32(b"0 torch.float32 [3]", zlib.crc32(tree)))
    packed = torch.frombuffer(bytearray(zlib.compress(tree)), dtype=torch.uint8)
    save_file({"0": weights, "tree": packed}, str(tmp_path / "state" / "state-5.safetensors"), {"tuner_state": "2", "crc32": str(crc)})
    assert load(tmp_path).step == 5 and torch.equal(load(tmp_path).state["a"], weights)


@pytest.mark.parametrize(("value", "message"), [
    (Path("x"), r"state\['a'\]\[1\] is of type .*Path, which"),
    (torch.zeros(2, dtype=torch.complex64), r"state\['a'\]\[1\] is a torch.strided tensor of torch.complex64"),
    (torch.eye(2).to_sparse(), r"state\['a'\]\[1\] is a torch.sparse_coo tensor"),
])
def test_what_a_state_cannot_hold_is_named_and_nothing_is_written(tmp_path, value, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path, 1, {"a": [0, value]})
    assert list(tmp_path.iterdir()) == []


def test_states_without_a_tensor_or_with_empty_ones_come_back(tmp_path):
    for step, state in enumerate(({}, {"a": 1}, {"a": torch.empty(0)}, {"a": torch.empty(0, 3), "b": torch.empty(0)})):
        save(tmp_path, step, state)
        assert same(state, load(tmp_path).state)


# ---- which states stay


def test_two_states_stay(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step, {"step": step})
    assert names(tmp_path) == ["state-10.safetensors", "state-100.safetensors"]
    save(tmp_path, 100, {"step": "again"})
    assert names(tmp_path) == ["state-10.safetensors", "state-100.safetensors"] and load(tmp_path).state == {"step": "again"}


def test_a_step_is_compared_as_a_number_and_other_files_are_left_alone(tmp_path):
    save(tmp_path, 9, {}), save(tmp_path, 10, {})
    for name in ("state-x.safetensors", "state-11.safetensors.bak"):
        (tmp_path / "state" / name).write_text("mine")
    save(tmp_path, 11, {})
    assert load(tmp_path).step == 11
    assert names(tmp_path) == ["state-10.safetensors", "state-11.safetensors", "state-11.safetensors.bak", "state-x.safetensors"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "reason"), [
    (_truncate, "it cannot be read"),
    (lambda p: p.write_bytes(b""), "it cannot be read"),
    (lambda p: p.write_bytes(bytes(p.stat().st_size)), "it cannot be read"),
    (lambda p: _flip(p, -1), "its content does not match its checksum"),
    (lambda p: _flip(p, -40), "its content does not match its checksum"),
    (lambda p: save_file({"w": torch.ones(1)}, str(p)), "it is not a run's state"),
    (lambda p: (p.unlink(), p.mkdir()), "it cannot be read"),
], ids=["cut", "empty", "zeros", "bit in a tensor", "bit in the tree", "another file", "a folder"])
def test_a_damaged_state_is_skipped_with_a_note(tmp_path, damage, reason):
    save(tmp_path, 1, {"momentum": torch.arange(3.0)})
    newest = save(tmp_path, 2, {"momentum": torch.arange(3.0)})
    damage(newest)
    loaded = load(tmp_path)
    assert loaded.step == 1 and len(loaded.notes) == 1
    assert loaded.notes[0].startswith(f"{newest} is skipped, because {reason}")


def test_a_skipped_state_does_not_take_a_place_of_the_two(tmp_path):
    for step in (10, 20):
        save(tmp_path, step, {})
    _truncate(tmp_path / "state" / "state-20.safetensors")
    save(tmp_path, load(tmp_path).step + 5, {})
    assert names(tmp_path) == ["state-10.safetensors", "state-15.safetensors"]


def test_no_readable_state_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no saved state .*; name the folder of a run"):
        load(tmp_path)
    _truncate(save(tmp_path, 1, {}))
    with pytest.raises(ValueError, match="no state that can be read, so the run has to be started anew: .*state-1.safetensors is skipped"):
        load(tmp_path)


def test_a_state_of_a_newer_tuner_is_refused_and_not_passed_over(tmp_path, monkeypatch):
    save(tmp_path, 1, {})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "VERSION", 8)
        save(tmp_path, 2, {})
    with pytest.raises(ValueError, match="state-2.safetensors is a state of version 8, and this Tuner reads version 1 or 2 or 3; resume the run with"):
        load(tmp_path)


# ---- kill and full disks


def _forked(work):
    """Runs `work` in a child; gives its process id."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # the parent's OpenMP threads are not in the child, which would wait for them without end
            work()
        finally:
            os._exit(0)
    return child


def _killing(patch, at):
    """Makes the process kill itself at its `at`-th look at the disk: before a write, a sync, a rename, a deletion."""
    count = [0]

    def wrap(owner, name):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        patch.setattr(owner, name, counted)

    import safetensors.torch
    for owner, name in ((safetensors.torch, "save_file"), (os, "fsync"), (os, "replace"), (Path, "unlink")):
        wrap(owner, name)
    return count


@needs_fork
def test_a_kill_between_any_two_steps_of_a_save_leaves_a_whole_state(tmp_path, monkeypatch):
    before = tmp_path / "before"
    save(before, 1, big(1)), save(before, 2, big(2))
    for at in range(1, 100):
        folder = tmp_path / str(at)
        shutil.copytree(before, folder)

        def work(folder=folder, at=at):
            _killing(monkeypatch, at)
            save(folder, 3, big(3))

        if os.waitstatus_to_exitcode(os.waitpid(_forked(work), 0)[1]) == 0:
            break
        loaded = load(folder)
        assert loaded.step in (2, 3) and loaded.notes == () and whole(loaded), at
        save(folder, 4, big(4))
        assert not [n for n in names(folder) if n.endswith(".part")] and len(names(folder)) == 2
    assert at > 6  # write, sync, rename, two folders' syncs, deletions: all were reached


@needs_fork
def test_a_kill_at_any_moment_leaves_a_whole_state(tmp_path):
    save(tmp_path, 1, big(1))

    def work():
        for step in range(2, 10_000):
            save(tmp_path, step, big(step))

    for wait in (0.01, 0.03, 0.05, 0.08, 0.11):
        child = _forked(work)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = load(tmp_path)
        assert loaded.notes == () and whole(loaded)


def test_the_new_state_is_on_the_disk_before_an_old_one_goes(tmp_path, monkeypatch):
    save(tmp_path, 1, {}), save(tmp_path, 2, {})
    happened = []
    for owner, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _o=original, _n=name, **k: (happened.append((_n, str(a[0]))), _o(*a, **k))[1])
    save(tmp_path, 3, {})
    kinds = [name for name, _ in happened]
    assert kinds[:2] == ["fsync", "replace"] and happened[-1] == ("unlink", str(tmp_path / "state" / "state-1.safetensors"))
    if os.name == "posix":
        assert kinds.count("fsync") == 3


@needs_fork
def test_a_disk_that_takes_no_more_is_said_and_nothing_is_half_written(tmp_path):
    """A file size limit stops the write in the middle, as a full disk does."""
    import resource

    save(tmp_path, 1, big(1))

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            save(tmp_path, 2, big(2))
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            (tmp_path / "said").write_text(str(error))

    os.waitpid(_forked(work), 0)
    said = (tmp_path / "said").read_text()
    assert said == f"{tmp_path / 'state'} did not take the run's state (File too large): choose a disk that takes files of this size, then resume the run."
    assert names(tmp_path) == ["state-1.safetensors"] and whole(load(tmp_path))


@pytest.mark.parametrize(("number", "advice"), [
    (errno.ENOSPC, "make room"), (errno.EROFS, "make it writable or choose another folder"), (errno.EACCES, "make it writable or choose another folder")])
def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch, number, advice):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    save(tmp_path, 1, {})
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError) as caught:
        save(tmp_path, 2, {})
    assert str(caught.value) == f"{tmp_path / 'state'} did not take the run's state ({os.strerror(number)}): {advice}, then resume the run."
    assert names(tmp_path) == ["state-1.safetensors"]


def test_too_little_room_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1, {})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(OSError, match=r"state-2.safetensors needs 2.1 MB, but .*state has 1.0 MB free; make room or choose another folder\.$"):
        save(tmp_path, 2, big(2))
    assert names(tmp_path) == ["state-1.safetensors"]


def test_a_file_in_the_way_of_the_folder_is_said(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(OSError, match="did not take the run's state .*: make it writable or choose another folder, then resume the run"):
        save(tmp_path / "run", 1, {})


# ---- saves


def touch(folder, *names_):
    for name in names_:
        (folder / name).write_text(name)
    return [folder / name for name in names_]


def test_all_but_the_last_saves_go_with_their_cards_and_pictures(tmp_path):
    saves = touch(tmp_path, "a-1.safetensors", "a-2.safetensors", "a.v1-3.safetensors", "a-4.safetensors")
    touch(tmp_path, "a-1.json", "a-1.png", "a-2.png", "a.v1-3.json", "a-4.png", "a.json", "other-1.png")
    assert prune(saves, 0) == [] and prune(saves, 4) == [] and len(list(tmp_path.iterdir())) == 11
    assert [p.name for p in prune(saves, 2)] == ["a-1.safetensors", "a-1.json", "a-1.png", "a-2.safetensors", "a-2.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-4.png", "a-4.safetensors", "a.json", "a.v1-3.json", "a.v1-3.safetensors", "other-1.png"]
    assert prune(saves, 2) == []


def test_a_save_of_several_files_counts_once_and_so_does_one_saved_again(tmp_path):
    a = touch(tmp_path, "x-1.safetensors", "x-1.pt", "y-1.safetensors"), touch(tmp_path, "x-2.safetensors", "x-2.pt", "y-2.safetensors")
    touch(tmp_path, "y-1.png")
    assert prune([*a, a[1]], 2) == []
    assert [p.name for p in prune([*a, a[1]], 1)] == ["x-1.safetensors", "x-1.pt", "y-1.safetensors", "y-1.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-2.pt", "x-2.safetensors", "y-2.safetensors"]


def test_what_belongs_to_a_save_that_stays_is_not_deleted(tmp_path):
    old, new = touch(tmp_path, "a.pt", "a.safetensors")
    touch(tmp_path, "a.png")
    assert prune([old, new], 1) == [old] and (tmp_path / "a.png").exists()


# ---- the folder of a run


def test_runs_are_counted_up_and_a_number_is_not_used_again(tmp_path):
    out = tmp_path / "new" / "outputs"
    assert [run_folder(out, "cat").name for _ in range(3)] == ["cat-001", "cat-002", "cat-003"]
    (out / "cat-001").rmdir()
    (out / "cat-1200").mkdir(), (out / "catty-2000").mkdir(), (out / "cat-x").mkdir()
    assert run_folder(out, "cat").name == "cat-1201" and run_folder(out, "dog").name == "dog-001"


@pytest.mark.parametrize(("name", "folder"), [
    ("../../etc/x", "_.._etc_x-001"), ("a<b>:c|d?*\"\\\n", "a_b_c_d_-001"), ("  . ", "run-001"), ("", "run-001"), ("ä cat (v1.5)", "ä cat (v1.5)-001"),
    ("x" * 300, "x" * 60 + "-001"), ("CON", "CON-001"), ("a+b[1]", "a+b[1]-001"),
])
def test_a_name_becomes_one_that_a_folder_can_have(tmp_path, name, folder):
    assert run_folder(tmp_path, name) == tmp_path / folder
    (tmp_path / folder.replace("-001", "-005")).mkdir()
    assert run_folder(tmp_path, name).name.endswith("-006")


def test_two_runs_that_start_at_once_get_two_folders(tmp_path, monkeypatch):
    (tmp_path / "cat-001").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # the other run's folder appeared after the look
    assert run_folder(tmp_path, "cat").name == "cat-002"


def test_an_output_that_takes_no_folder_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"^output: no folder can be made in .*file.* \(.*\); choose a folder that can be written\.$"):
            run_folder(output, "cat")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"no folder can be made in .* \(Permission denied\)"):
        run_folder(tmp_path, "cat")
