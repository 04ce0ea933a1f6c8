"""The loop with a toy method: resuming, stopping, diverging, and what is written."""

from __future__ import annotations

import copy
import errno
import itertools
import os
import signal
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn

from conftest import clock_of, make_batch
from labelwise.components.teachers import Decay, EmaTeacher, renew_statistics
from labelwise.devices import choose_device, memory_explained
from labelwise.errors import CheckpointError, ResourceError, TrainingError
from labelwise.formats.tensors import load_tensors
from labelwise.losses.partial import squared_difference, supervised
from labelwise.methods.base import Card, Method, Softmax
from labelwise.train.checkpoint import load_method
from labelwise.train.distributed import DeviceConfig, connect
from labelwise.train.loop import STATISTICS_BATCHES, LoopConfig, Stage, fit, step_seed
from labelwise.train.record import read_log
from labelwise.train.schedule import OptimizerConfig, ScheduleConfig


class Toy(Method):
    """One convolution with dropout (so that random numbers matter) and a counter that only after_step moves."""

    card = Card("Toy", "", "A toy.", frozenset({"full"}))
    Config = dict

    def __init__(self, blow_up_at: int = 10**9):
        super().__init__()
        torch.manual_seed(7)
        self.network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.Dropout3d(0.5), nn.Conv3d(8, 4, 1))
        self.blow_up_at = blow_up_at
        self.register_buffer("moved", torch.zeros(()))

    def forward(self, batch, progress):
        loss = supervised(self.network(batch.images), batch.labels, batch.annotated)
        return {"supervised": loss / (0 if progress.step >= self.blow_up_at else 1)}

    def after_step(self, progress):
        self.moved += 1

    def predictor(self):
        return Softmax(self.network)


def forever(start):
    return (make_batch("full", "partial", seed=step, size=8) for step in itertools.count(start))


CONFIG = LoopConfig(steps=(6,), log_every=2, optimizer=OptimizerConfig(rate=0.05))
PRECISE = DeviceConfig(device="cpu", precision="float32")


def quiet(task, done, total, message):
    pass


def stage(folder, **changes):
    return replace(
        Stage(method=Toy(), batches=forever, steps=6, folder=folder, settings={"rate": 0.05}, seed=3),
        **changes,
    )


def state(method):
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_resumed_run_is_equal_to_an_uninterrupted_one(tmp_path, optimizer, precision):
    config = replace(CONFIG, optimizer=OptimizerConfig(name=optimizer, rate=0.01))
    fabric = connect(replace(PRECISE, precision=precision))
    whole = stage(tmp_path / "whole")
    fit(whole, config, fabric, quiet)

    first = stage(tmp_path / "parts")
    calls = []

    def stop_soon(task, done, total, message):
        calls.append(done)
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    result = fit(first, config, fabric, stop_soon)
    assert result.interrupted
    assert result.step == 2
    second = stage(tmp_path / "parts")
    result = fit(second, config, fabric, quiet)
    assert not result.interrupted
    assert_equal_states(state(whole.method), state(second.method))
    assert second.method.moved == 6
    whole_log, parts_log = (
        [(event["step"], event["loss"]) for event in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "parts")
    )
    assert whole_log == parts_log


def test_a_resumed_run_has_the_average_of_an_uninterrupted_one_and_gives_it_to_the_model(tmp_path):
    config = replace(CONFIG, average=0.05)
    fabric = connect(PRECISE)
    whole = stage(tmp_path / "whole")
    fit(whole, config, fabric, quiet)

    def stop_soon(task, done, total, message):
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert fit(stage(tmp_path / "parts"), config, fabric, stop_soon).interrupted
    fit(stage(tmp_path / "parts"), config, fabric, quiet)
    kept = [Toy(), Toy()]
    for method, name in zip(kept, ("whole", "parts"), strict=True):
        load_method(tmp_path / name / "last.safetensors", method)
    assert_equal_states(state(kept[0]), state(kept[1]))
    assert not torch.equal(kept[0].network[0].weight, whole.method.network[0].weight)


class Exact(Toy):
    """Without dropout, in float64; its loss is a mean over cases."""

    def __init__(self):
        super().__init__()
        self.network[1].p = 0.0
        self.double()

    def forward(self, batch, progress):
        return super().forward(batch._replace(images=batch.images.double()), progress)


def joined(batches):
    """One batch of all their cases."""
    images, labels, annotated = (
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels", "annotated")
    )
    names = tuple(name for batch in batches for name in batch.case_ids)
    rows = tuple(row for batch in batches for row in batch.annotated_on_host)
    return batches[0]._replace(
        images=images, labels=labels, annotated=annotated, case_ids=names, annotated_on_host=rows
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batches_that_are_added_up_train_as_the_large_batch_of_their_cases(tmp_path, optimizer):
    def small(start):
        return (make_batch("full", "full", seed=number, size=8) for number in itertools.count(start))

    def large(start):
        numbers = itertools.count(3 * start, step=3)
        return (joined(list(itertools.islice(small(number), 3))) for number in numbers)

    config = replace(CONFIG, optimizer=OptimizerConfig(name=optimizer, rate=0.01), clip_gradient=0.1)
    whole = stage(tmp_path / "whole", method=Exact(), batches=large)
    fit(whole, config, connect(PRECISE), quiet)
    parts = stage(tmp_path / "parts", method=Exact(), batches=small)
    fit(parts, replace(config, accumulate=3), connect(PRECISE), quiet)
    for name, tensor in state(whole.method).items():
        torch.testing.assert_close(parts.method.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)
    losses = [
        [event["loss"] for event in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert parts.method.moved == 6


def test_a_resumed_run_takes_the_batches_of_its_next_step(tmp_path):
    asked = []

    def batches(start):
        asked.append(start)
        return forever(start)

    def stop_soon(task, done, total, message):
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    config = replace(CONFIG, accumulate=2)
    whole = stage(tmp_path / "whole")
    fit(whole, config, connect(PRECISE), quiet)
    assert fit(stage(tmp_path / "parts", batches=batches), config, connect(PRECISE), stop_soon).interrupted
    parts = stage(tmp_path / "parts", batches=batches)
    fit(parts, config, connect(PRECISE), quiet)
    assert_equal_states(state(whole.method), state(parts.method))
    assert asked[0] == 0
    assert 4 in asked[1:]


class TwoSteps(Toy):
    """f(w) = w^2 / 2 in the first part of a step, and (w - what the first part left)^2 / 2 in the second."""

    steps_per_batch = 2

    def __init__(self):
        super().__init__()
        self.network = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.ones_(self.network.weight)

    def forward(self, batch, progress):
        weight = self.network.weight.sum()
        if progress.part == 0:
            self.left = 10 * weight.detach()
            return {"supervised": weight**2 / 2}
        return {"supervised": (weight - self.left) ** 2 / 2}

    def after_step(self, progress):
        self.moved += 1 + progress.part


def test_a_method_may_take_several_optimiser_steps_for_a_batch(tmp_path):
    """w = 1 -> 1 - 0.1 * 1 = 0.9 -> 0.9 - 0.1 * (0.9 - 10) = 1.81; the log adds both parts: 0.5 + 41.405."""
    trained = stage(tmp_path, method=TwoSteps(), steps=1, settings={})
    config = LoopConfig(
        steps=(1,),
        log_every=1,
        optimizer=OptimizerConfig(name="sgd", rate=0.1, momentum=0.0, weight_decay=0.0),
        schedule=ScheduleConfig(name="constant"),
    )
    fit(trained, config, connect(PRECISE), quiet)
    assert trained.method.network.weight.item() == pytest.approx(1.81)
    assert trained.method.moved == 3
    (line,) = [event for event in read_log(tmp_path / "log.jsonl") if event["event"] == "train"]
    assert line["terms"]["supervised"] == pytest.approx(0.5 + (0.9 - 10) ** 2 / 2)


class Manifold(Toy):
    """Batch norm, a teacher, weights in another memory layout, and two optimisers."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 4, 3, padding=1)
        )
        self.teacher = EmaTeacher(self.network, Decay(0.1, fixed=0.9))

    def forward(self, batch, progress):
        answer = self.teacher(batch.images + 0.1 * torch.randn_like(batch.images)).softmax(dim=1)
        distance = squared_difference(self.network(batch.images).softmax(dim=1), answer)
        return {**super().forward(batch, progress), "consistency": distance}

    def after_step(self, progress):
        super().after_step(progress)
        self.teacher.follow(self.network, progress)

    def parameter_groups(self):
        *first, last = self.network
        return [
            {"params": [weight for layer in first for weight in layer.parameters()], "lr_scale": 0.5},
            {"params": list(last.parameters()), "optimizer": {"name": "adam", "rate": 1e-3}},
        ]


def test_a_resumed_run_remembers_the_validations_that_its_rate_follows(tmp_path):
    schedule = ScheduleConfig(name="plateau", factor=0.5, patience=0, floor=0.0)
    config = replace(CONFIG, schedule=schedule, validate_every=1, log_every=1)
    scores = [0.3, 0.2, 0.5, 0.4, 0.1, 0.6]

    def rates(folder, parts):
        left = iter(scores)
        for last in parts:

            def stop_there(task, done, total, message, last=last):
                if done == last:
                    os.kill(os.getpid(), signal.SIGTERM)

            fit(stage(folder, validate=lambda predictor: next(left)), config, connect(PRECISE), stop_there)
        return [event["rate"] for event in read_log(folder / "log.jsonl") if event["event"] == "train"]

    halves = [1, 1, 0.5, 0.5, 0.25, 0.125]
    assert rates(tmp_path / "whole", [None]) == pytest.approx([0.05 * half for half in halves])
    assert rates(tmp_path / "parts", [2, 4, None]) == rates(tmp_path / "again", [None])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_memories_and_several_optimisers_are_resumed(tmp_path, precision):
    config = replace(CONFIG, clip_gradient=0.1)
    fabric = connect(replace(PRECISE, precision=precision))
    whole, last = stage(tmp_path / "whole", method=Manifold()), stage(tmp_path / "parts", method=Manifold())
    fit(whole, config, fabric, quiet)

    def stop(task, done, total, message):
        os.kill(os.getpid(), signal.SIGINT)

    assert fit(replace(last, method=Manifold()), config, fabric, stop).step == 2
    assert fit(replace(last, method=Manifold()), config, fabric, stop).step == 4
    fit(last, config, fabric, quiet)
    assert_equal_states(state(whole.method), state(last.method))
    assert not torch.equal(whole.method.teacher.network[0].weight, whole.method.network[0].weight)


class Kept(Manifold):
    """The teacher is what is kept; the batches of the toy lie far from zero."""

    def predictor(self):
        return nn.Sequential(self.teacher.network, nn.Softmax(dim=1))


def test_an_averaged_network_is_validated_and_saved_with_statistics_of_its_own(tmp_path):
    seen = []

    def validate(predictor):
        assert not predictor.training
        seen.append({name: buffer.clone() for name, buffer in predictor.named_buffers()})
        return 0.5

    whole = stage(tmp_path, method=Kept(), validate=validate)
    fit(whole, replace(CONFIG, validate_every=3), connect(PRECISE), quiet)
    assert len(seen) == 2
    expected = copy.deepcopy(whole.method.teacher.network)
    renew_statistics(expected, [batch.images for batch in islice(forever(0), STATISTICS_BATCHES)])
    for name, buffer in expected.named_buffers():
        assert torch.equal(seen[-1][f"0.{name}"], buffer), name
    tensors, _ = load_tensors(tmp_path / "last.safetensors")
    assert torch.equal(tensors["method.teacher.network.1.running_mean"], expected[1].running_mean)
    assert not torch.equal(expected[1].running_mean, whole.method.network[1].running_mean)


def test_a_finished_run_is_not_trained_again(tmp_path):
    fabric = connect(PRECISE)
    fit(stage(tmp_path), CONFIG, fabric, quiet)
    before = (tmp_path / "log.jsonl").read_bytes()
    result = fit(stage(tmp_path, batches=lambda start: iter(())), CONFIG, fabric, quiet)
    assert result.step == 6
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_other_settings_are_refused_and_named(tmp_path):
    fabric = connect(PRECISE)
    fit(stage(tmp_path), CONFIG, fabric, quiet)
    with pytest.raises(CheckpointError, match=r"rate = 0\.05"):
        fit(stage(tmp_path, settings={"rate": 0.1}), CONFIG, fabric, quiet)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(tmp_path):
    fabric = connect(PRECISE)
    config = replace(CONFIG, steps=(20,), checkpoint_minutes=1e-9)
    with pytest.raises(TrainingError, match="term supervised") as caught:
        fit(stage(tmp_path, method=Toy(blow_up_at=9), steps=20), config, fabric, quiet)
    assert "clip_gradient" in str(caught.value)
    assert "the last checkpoint before this is kept" in str(caught.value)
    tensors, header = load_tensors(tmp_path / "last.safetensors")
    assert header["facts"]["step"] <= 9
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_loss_that_is_never_finite_names_no_checkpoint(tmp_path):
    with pytest.raises(TrainingError) as caught:
        fit(stage(tmp_path, method=Toy(blow_up_at=0)), CONFIG, connect(PRECISE), quiet)
    assert "checkpoint" not in str(caught.value)
    assert not (tmp_path / "last.safetensors").exists()


class Exploding(Toy):
    """Its loss stays finite while its gradient does not, as that of a square root at 0."""

    def forward(self, batch, progress):
        terms = super().forward(batch, progress)
        if progress.step == 3:
            terms["root"] = (self.network[2].bias * 0).sum().sqrt()
        return terms


class Poisoned(Toy):
    """Running statistics, here a buffer, that are not finite while loss and weights are: as after one voxel of 1e30."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("running_var", torch.ones(3))
        self.value = value

    def after_step(self, progress):
        super().after_step(progress)
        if progress.step == 2:
            self.running_var[1] = self.value


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize("minutes", [60, 1e-9])
def test_buffers_that_are_not_finite_reach_no_checkpoint(tmp_path, value, minutes):
    config = replace(CONFIG, checkpoint_minutes=minutes)
    with pytest.raises(TrainingError, match="the buffers are not finite") as caught:
        fit(stage(tmp_path, method=Poisoned(value)), config, connect(PRECISE), quiet)
    assert "buffer running_var" in str(caught.value)
    assert "labelwise check" in str(caught.value)
    if (tmp_path / "last.safetensors").exists():
        assert load_tensors(tmp_path / "last.safetensors")[1]["facts"]["step"] == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 TiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_runs_out_is_told_with_a_remedy_and_a_defect_is_raised(error):
    with pytest.raises(ResourceError, match="too small") as caught, memory_explained("too small", do="lower"):
        raise error
    assert str(caught.value.found) in str(error)
    for defect in (
        RuntimeError("shapes do not fit"),
        OSError(errno.ENOENT, "missing"),
        ValueError("out of memory"),
    ):
        with pytest.raises(type(defect)), memory_explained("too small", do="lower"):
            raise defect


@pytest.mark.parametrize("minutes", [60, 1e-9])
@pytest.mark.parametrize("breaks", [(), (4,), (2, 5)])
def test_the_log_has_the_same_lines_whatever_the_clock_and_the_breaks(tmp_path, breaks, minutes):
    fabric, config = connect(PRECISE), replace(CONFIG, steps=(9,), log_every=3)

    def lines(folder):
        return [(e["step"], e["loss"], e["terms"]) for e in read_log(folder / "log.jsonl")]

    fit(stage(tmp_path / "whole", steps=9), config, fabric, quiet)
    for stop in (*breaks, 9):

        def stop_here(start, stop=stop):
            for number, batch in zip(itertools.count(start), forever(start), strict=False):
                if number + 1 == stop < 9:
                    signal.raise_signal(signal.SIGTERM)
                yield batch

        hasty = replace(config, checkpoint_minutes=minutes)
        assert fit(stage(tmp_path / "parts", batches=stop_here, steps=9), hasty, fabric, quiet).step == stop
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert [step for step, *_ in lines(tmp_path / "whole")] == [3, 6, 9]


@pytest.mark.parametrize(("steps", "minutes"), [(4, 60), (6, 1e-9)])
def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path, steps, minutes):
    config = replace(CONFIG, steps=(steps,), checkpoint_minutes=minutes, log_every=1)
    with pytest.raises(TrainingError, match="the weights are not finite within the steps up to 4") as caught:
        fit(stage(tmp_path, method=Exploding(), steps=steps), config, connect(PRECISE), quiet)
    assert "weight network.2.bias" in str(caught.value)
    if (tmp_path / "last.safetensors").exists():
        tensors, header = load_tensors(tmp_path / "last.safetensors")
        assert header["facts"]["step"] == 3
        assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_best_validation_is_kept(tmp_path):
    scores = iter([0.2, 0.7, 0.4])
    result = fit(
        stage(tmp_path, validate=lambda predictor: next(scores)),
        replace(CONFIG, validate_every=2),
        connect(PRECISE),
        quiet,
    )
    assert (result.best_score, result.best_step) == (0.7, 4)
    _, header = load_tensors(tmp_path / "best.safetensors")
    assert header["facts"]["step"] == 4
    assert [e["score"] for e in read_log(tmp_path / "log.jsonl") if e["event"] == "validation"] == [
        0.2,
        0.7,
        0.4,
    ]


def test_a_best_checkpoint_does_not_put_off_the_last_one(tmp_path, monkeypatch):
    """A run goes on from the last checkpoint, so only that one starts the clock anew."""
    saved, minutes = [], itertools.count(0, 24)
    monkeypatch.setattr("labelwise.train.loop.time", clock_of(minutes))
    monkeypatch.setattr("labelwise.train.loop.save_checkpoint", lambda path, *_: saved.append(path.name))
    config = replace(CONFIG, validate_every=1, checkpoint_minutes=1)
    scores = itertools.count()
    fit(stage(tmp_path, validate=lambda _: float(next(scores))), config, connect(PRECISE), quiet)
    assert saved.count("best.safetensors") == 6
    assert saved.count("last.safetensors") >= 3


class Agreed:
    """Stands in for `Agreement`: what the ranks decide together, whatever this one says."""

    def __init__(self, said, save):
        self.said, self.save = said, save

    def any(self, *here):
        self.said.append(len(here))
        return (False, self.save)[: len(here)]


class Ranks:
    """One rank of two, whose words to the other are written down. The other always agrees."""

    def __init__(self, fabric, said):
        self.fabric, self.said, self.world_size = fabric, said, 2

    def __getattr__(self, name):
        return getattr(self.fabric, name)

    def all_reduce(self, value, reduce_op):
        self.said.append(value.shape)
        return value


@pytest.mark.parametrize("save", [True, False])
def test_ranks_with_different_clocks_do_the_same_at_every_step(tmp_path, monkeypatch, save):
    """One rank is late with its checkpoint and the other is not: both must talk at the same steps."""
    conversations = []
    for name, tick in (("slow", 0), ("fast", 1e6)):
        clock = itertools.count(0, tick)
        monkeypatch.setattr("labelwise.train.loop.time", clock_of(clock))
        said = []
        conversations.append(said)
        monkeypatch.setattr("labelwise.train.loop.Agreement", lambda fabric, said=said: Agreed(said, save))

        def watched(start, said=said):
            for number, batch in zip(itertools.count(start), forever(start), strict=False):
                said.append(number)
                yield batch

        fit(
            stage(tmp_path / name, batches=watched),
            replace(CONFIG, log_every=3),
            Ranks(connect(PRECISE), said),
            quiet,
        )
    assert conversations[0] == conversations[1]


def test_validation_does_not_change_the_training(tmp_path):
    def validate(predictor):
        torch.rand(100)
        with torch.no_grad():
            return float(predictor(make_batch("full", size=8).images).mean())

    fabric = connect(PRECISE)
    plain, validated = stage(tmp_path / "a"), stage(tmp_path / "b", validate=validate)
    fit(plain, CONFIG, fabric, quiet)
    fit(validated, replace(CONFIG, validate_every=1), fabric, quiet)
    assert_equal_states(state(plain.method), state(validated.method))


def test_a_damaged_checkpoint_is_named(tmp_path):
    fabric = connect(PRECISE)
    fit(stage(tmp_path), CONFIG, fabric, quiet)
    file = tmp_path / "last.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        fit(stage(tmp_path), CONFIG, fabric, quiet)


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path, monkeypatch):
    fabric = connect(PRECISE)
    fit(stage(tmp_path, steps=2), replace(CONFIG, steps=(2,)), fabric, quiet)
    before = (tmp_path / "last.safetensors").read_bytes()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labelwise.formats.tensors.save_file", full)
    with pytest.raises(ResourceError, match="disk is full"):
        fit(stage(tmp_path), CONFIG, fabric, quiet)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.safetensors", "log.jsonl"]


def test_a_log_line_cut_off_by_a_kill_is_dropped(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 2, "event": "train"}\n{"step": 4, "ev')
    assert read_log(file) == [{"step": 2, "event": "train"}]


def test_gradient_clipping_changes_the_result(tmp_path):
    fabric = connect(PRECISE)
    plain, clipped = stage(tmp_path / "a"), stage(tmp_path / "b")
    fit(plain, CONFIG, fabric, quiet)
    fit(clipped, replace(CONFIG, clip_gradient=1e-4), fabric, quiet)
    assert not torch.equal(plain.method.network[0].weight, clipped.method.network[0].weight)


def test_gradients_of_one_optimiser_do_not_clip_those_of_another(tmp_path):
    class Loud(Toy):
        """A critic whose gradient is a million times that of the network."""

        def __init__(self):
            super().__init__()
            self.critic = torch.nn.Parameter(torch.ones(1))

        def forward(self, batch, progress):
            return {**super().forward(batch, progress), "critic": 1e6 * self.critic.sum()}

        def parameter_groups(self):
            critic = {"params": [self.critic], "optimizer": {"name": "sgd", "rate": 1e-3}}
            return [{"params": list(self.network.parameters())}, critic]

    fabric, config = connect(PRECISE), replace(CONFIG, clip_gradient=100.0)
    alone, beside = stage(tmp_path / "a"), stage(tmp_path / "b", method=Loud())
    beside.method.network.load_state_dict(alone.method.network.state_dict())
    fit(alone, config, fabric, quiet)
    fit(beside, config, fabric, quiet)
    assert_equal_states(state(alone.method.network), state(beside.method.network))


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="auto"):
            choose_device("cuda")
    with pytest.raises(ResourceError):
        choose_device("tpu")


def test_step_seeds_differ_in_every_argument():
    seeds = {step_seed(s, g, t, r) for s in range(3) for g in range(2) for t in range(50) for r in range(4)}
    assert len(seeds) == 3 * 2 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
