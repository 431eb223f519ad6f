"""The loop: exact resume after any kill, signals, NaN, locks, schedules that the optimizer follows."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ai_learning.batches import TokenBatches, evaluation_batches
from ai_learning.checkpoint import load_checkpoint, load_gpt
from ai_learning.device import flops_per_token, pick_device
from ai_learning.errors import InputError
from ai_learning.kernels.loops import store
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.run_folder import RunFolder, read_metrics
from ai_learning.train import DivergedError, Interrupted, TrainConfig, train

MODEL = GPTConfig(vocab_size=32, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.1)
TOKENS = np.random.default_rng(0).integers(0, 32, 2000).astype(np.uint16)
HOW = TrainConfig(
    steps=12, batch_size=4, grad_accum=2, warmup=3, eval_every=4, save_every=3, log_every=2, device="cpu"
)


def run(out: Path, config: TrainConfig = HOW, *, shape=MODEL, resume=False, loss=None, **options):  # type: ignore[no-untyped-def]
    torch.manual_seed(config.seed)
    model = GPT(shape)
    val = evaluation_batches(TOKENS[:400], 16, 4, 3)
    return model, train(
        model,
        loss or (lambda model, batch: next_token_loss(model, *batch)),
        TokenBatches(TOKENS, 16, config.batch_size, config.seed),
        config,
        out,
        evaluate=lambda model: {"val_loss": sum(float(next_token_loss(model, *b)) for b in val) / len(val)},
        resume=resume,
        **options,
    )


def curve(folder: Path) -> list[dict]:
    times = ("elapsed_s", "tokens_per_s")
    return [
        {k: v for k, v in row.items() if k not in times} for row in read_metrics(folder / "metrics.jsonl")
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.pt")["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_muon_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    muon = replace(HOW, optimizer="muon", muon_lr=0.02)
    run(tmp_path / "whole", muon)
    state = load_checkpoint(tmp_path / "whole" / "last.pt")["optimizer"]
    kinds = [set(state["state"][number]) for number in sorted(state["state"])]
    assert {"exp_avg", "exp_avg_sq", "step"} in kinds and {"momentum_buffer"} in kinds
    assert {"momentum_buffer"} == kinds[-1] and len(kinds) == len(list(GPT(MODEL).parameters()))

    def stopped(model, batch):  # type: ignore[no-untyped-def]
        stopped.calls += model.training
        if model.training and stopped.calls == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_token_loss(model, *batch)

    stopped.calls = 0
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", muon, loss=stopped)
    run(tmp_path / "parts", muon, resume=True)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    run(tmp_path / "adamw")
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "adamw"))
    with pytest.raises(InputError, match="started with optimizer=muon, not adamw"):
        run(tmp_path / "parts", resume=True)
    with pytest.raises(ValueError, match="optimizer='sgd' is not known; use adamw, muon"):
        replace(HOW, optimizer="sgd")
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        replace(HOW, optimizer="muon", parallel="fsdp")


def test_a_run_learns_and_leaves_its_files(tmp_path: Path) -> None:
    tokens = np.tile(np.arange(8, dtype=np.uint16), 200)
    rows: list[dict] = []
    torch.manual_seed(0)
    model = GPT(MODEL)
    result = train(
        model,
        lambda model, batch: next_token_loss(model, *batch),
        TokenBatches(tokens, 16, 8),
        TrainConfig(steps=60, batch_size=8, lr=1e-2, warmup=5, eval_every=30, device="cpu"),
        tmp_path,
        evaluate=lambda model: {"val_loss": float(next_token_loss(model, *TokenBatches(tokens, 16, 8)(999)))},
        sample=lambda model: "text",
        listener=rows.append,
    )
    assert result.step == 60 and result.best_val_loss is not None and result.best_val_loss < 0.5
    assert {p.name for p in tmp_path.iterdir()} == {
        ".lock", "last.pt", "best.pt", "best.prev.pt", "metrics.jsonl"
    }  # fmt: skip
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 30, 60]
    assert all({"loss", "lr", "grad_norm", "tokens_per_s"} <= row.keys() for row in rows if "loss" in row)
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["best_val_loss"] == result.best_val_loss and "optimizer" not in best


@pytest.mark.parametrize("stop_after", [1, 5, 6, 11])
def test_resume_is_exact_after_a_signal(tmp_path: Path, stop_after: int) -> None:
    run(tmp_path / "whole")
    steps = 0

    def loss(model, batch):  # type: ignore[no-untyped-def]
        nonlocal steps
        steps += model.training  # the look before a save is no step
        if model.training and steps == 2 * stop_after:  # grad_accum = 2
            os.kill(os.getpid(), signal.SIGTERM)
        return next_token_loss(model, *batch)

    with pytest.raises(Exception, match=rf"SIGTERM after step {stop_after}; saved") as caught:
        run(tmp_path / "parts", loss=loss)
    assert caught.value.exit_code == 143  # type: ignore[attr-defined]
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == stop_after
    run(tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert [r for r in curve(tmp_path / "parts") if r["step"] % 2 == 0] == [
        r for r in curve(tmp_path / "whole") if r["step"] % 2 == 0
    ]


@pytest.mark.parametrize("crash_at", [1, 4, 5, 9, 12])
def test_resume_is_exact_after_a_crash_between_checkpoints(tmp_path: Path, crash_at: int) -> None:
    """Nothing is saved at the crash: what was logged since the last checkpoint must not stand twice."""
    run(tmp_path / "whole")
    calls = 0

    def loss(model, batch):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += model.training
        if model.training and calls == 2 * crash_at:
            raise RuntimeError("power cut")
        return next_token_loss(model, *batch)

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "parts", loss=loss)
    run(tmp_path / "parts", resume=True)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_train import run, HOW
from dataclasses import replace
from pathlib import Path
run(Path({out!r}), replace(HOW, steps={steps}), resume=True)
print("finished")
"""


def start(out: Path, steps: int) -> subprocess.Popen[str]:
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(out), steps=steps)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def last_step(out: Path) -> int:
    return max((row["step"] for row in read_metrics(out / "metrics.jsonl")), default=0)


def kill_until_done(out: Path, steps: int, kills: int) -> None:
    """SIGKILL the run ``kills`` times, each a random moment after it began to go on, then let it finish."""
    generator = random.Random(kills)
    for _ in range(kills):
        process = start(out, steps)
        before = last_step(out)
        while process.poll() is None and last_step(out) <= before:  # importing torch takes seconds
            time.sleep(0.001)
        time.sleep(generator.random() * 0.1)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed: give it more steps"
        assert last_step(out) < steps
    output, errors = start(out, steps).communicate(timeout=300)
    assert output == "finished\n", errors


def compare_with_uninterrupted(tmp_path: Path, steps: int, kills: int) -> None:
    run(tmp_path / "whole", replace(HOW, steps=steps))
    kill_until_done(tmp_path / "killed", steps, kills)
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_sigkill_and_resume_give_the_same_weights(tmp_path: Path) -> None:
    compare_with_uninterrupted(tmp_path, steps=400, kills=3)


@pytest.mark.slow
def test_sigkill_at_20_random_moments(tmp_path: Path) -> None:
    compare_with_uninterrupted(tmp_path, steps=2000, kills=20)


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    calls = 0

    def loss(model, batch):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += model.training  # the look before a save is no step
        return next_token_loss(model, *batch) * (math.nan if calls == 15 else 1.0)

    with pytest.raises(DivergedError, match=r"loss is nan at step 8; the last good checkpoint is .*last\.pt"):
        run(tmp_path, loss=loss)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 6
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_ruined_weights_are_not_saved(tmp_path: Path) -> None:
    """A last step that leaves huge but finite weights shows only in the next loss."""

    def loss(model, batch):  # type: ignore[no-untyped-def]
        if next(model.parameters()).abs().max() > 1e3:
            return torch.tensor(math.inf)
        return next_token_loss(model, *batch)

    wild = replace(HOW, steps=3, lr=1e20, warmup=0, save_every=1, eval_every=3)
    with pytest.raises(DivergedError, match="the next loss is inf at step 1; no checkpoint was saved yet"):
        run(tmp_path, wild, loss=loss)
    assert not (tmp_path / "last.pt").exists()


def test_a_held_out_loss_that_is_nan_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="held-out loss is nan at step 0"):
        train(
            GPT(MODEL),
            lambda model, batch: next_token_loss(model, *batch),
            TokenBatches(TOKENS, 16, 4),
            HOW,
            tmp_path,
            evaluate=lambda model: {"val_loss": math.nan},
        )
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_finished_run_resumes_to_its_own_result(tmp_path: Path) -> None:
    _, first = run(tmp_path)
    _, again = run(tmp_path, resume=True)
    assert (again.step, again.loss, again.metrics) == (first.step, first.loss, first.metrics)
    assert again.best_metrics == first.best_metrics and again.best_val_loss == first.best_val_loss


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path),
        pytest.raises(InputError, match=rf"is in use by another run \(process {os.getpid()}\)"),
    ):
        run(tmp_path)
    run(tmp_path)
    with pytest.raises(InputError, match="already holds a run: --resume it"):
        run(tmp_path)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_can_be_made_longer(tmp_path: Path, schedule: str) -> None:
    how, said = replace(HOW, schedule=schedule, steps=7), []

    def note(row: dict) -> None:
        said.extend([row["note"]] if "note" in row else [])

    run(tmp_path / "whole", replace(how, steps=12))
    run(tmp_path / "parts", how, listener=note)
    run(tmp_path / "parts", how, resume=True, listener=note)
    assert said[-1] == "the run was finished at step 7; to go on from there, give more --steps"
    run(tmp_path / "parts", replace(how, steps=12), resume=True, listener=note)
    assert said[-1].startswith(
        "going on to step 12, not 7: the learning rate follows the new total from here"
    )
    exact = schedule == "constant"  # cosine went down to its floor at step 7
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole")) is exact
    assert last_step(tmp_path / "parts") == 12
    with pytest.raises(InputError, match="was started with steps=12, not 7"):
        run(tmp_path / "parts", how, resume=True)
    with pytest.raises(InputError, match="was started with lr="):
        run(tmp_path / "parts", replace(how, steps=14, lr=0.5), resume=True)


def test_compiling_is_announced_to_a_listener_and_to_nobody_else(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    said: list[str] = []

    def listener(row: dict) -> None:
        said.extend([row["note"]] if "note" in row else [])

    def loss(model, batch):  # type: ignore[no-untyped-def]
        for tell in store._to_be_told[:]:  # as a loop that is not stored does
            store._to_be_told.remove(tell)
            tell()
        return next_token_loss(model, *batch)

    run(tmp_path / "one", loss=loss, listener=listener)
    assert said == ["compiling loops, once on this machine (some seconds) …"]
    run(tmp_path / "two", loss=loss)
    assert len(said) == 1 and not store._to_be_told and capsys.readouterr() == ("", "")


def test_resume_refuses_another_recipe(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(InputError, match=r"was started with lr=0\.001, not 0\.1"):
        run(tmp_path, replace(HOW, lr=0.1), resume=True)
    run(tmp_path, replace(HOW, log_every=1), resume=True)  # changes no weight


def test_a_run_from_before_a_field_of_its_config_existed_goes_on(tmp_path: Path) -> None:
    """The field's default is what the run was made with; another value is another model."""
    run(tmp_path, identity={"lora": {"r": 8, "use_dora": False}})
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    del saved["config"]["qk_norm"], saved["identity"]["lora"]["use_dora"]
    torch.save(saved, tmp_path / "last.pt")
    run(tmp_path, resume=True, identity={"lora": {"r": 8, "use_dora": False}})
    with pytest.raises(InputError, match="of a model with another config"):
        run(tmp_path, shape=replace(MODEL, qk_norm=True), resume=True, identity={"lora": {"r": 8}})
    with pytest.raises(InputError, match=r"was started with lora=.*8"):
        run(tmp_path, resume=True, identity={"lora": {"r": 4, "use_dora": False}})


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    run(tmp_path, identity={"data_digest": "one"})
    with pytest.raises(InputError, match="was started with data_digest=one, not two"):
        run(tmp_path, resume=True, identity={"data_digest": "two"})


def test_gradient_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    plain = GPTConfig(**{**MODEL.__dict__, "dropout": 0.0})
    batches = TokenBatches(TOKENS, 16, 8)

    def halves(n: int):  # type: ignore[no-untyped-def]
        x, y = batches(n // 2)
        return x[n % 2 :: 2], y[n % 2 :: 2]

    finals = []
    for name, source, accum in (("one", batches, 1), ("two", halves, 2)):
        torch.manual_seed(0)
        model = GPT(plain)
        train(
            model,
            lambda model, batch: next_token_loss(model, *batch),
            source,
            replace(HOW, steps=4, grad_accum=accum),
            tmp_path / name,
        )
        finals.append(model.state_dict())
    for name in finals[0]:
        torch.testing.assert_close(finals[0][name], finals[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_clipping_limits_the_gradient_and_zero_switches_it_off(
    tmp_path: Path, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, step = [], torch.optim.AdamW.step

    def spy(self, *args):  # type: ignore[no-untyped-def]
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(tmp_path, replace(HOW, steps=3, log_every=1, grad_clip=clip))
    logged = [row["grad_norm"] for row in curve(tmp_path) if "grad_norm" in row]
    assert min(logged) > 0.05  # what is logged is the norm before clipping
    assert norms == pytest.approx([0.05] * 3 if clip else logged, rel=1e-3)


def test_seeding_is_given_back(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model = GPT(MODEL)
    torch.manual_seed(5)
    train(
        model,
        lambda model, batch: next_token_loss(model, *batch),
        TokenBatches(TOKENS, 16, 4),
        TrainConfig(steps=2, batch_size=4, device="cpu"),
        tmp_path,
    )
    assert torch.equal(torch.rand(1), expected)


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_flops_per_token_of_gpt2() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig())
    n = 124_439_808 - 1024 * 768
    assert flops_per_token(model) == 6 * n + 12 * 12 * 768 * 1024


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda' is not available here; use"):
            pick_device("cuda")
    with pytest.raises(InputError, match="device 'gpu' is not available"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(steps=0), "steps=0 must be at least 1"),
        (dict(steps=2.5), "steps=2.5 must be a whole number"),
        (dict(warmup=0.1), "warmup=0.1 must be a whole number"),
        (dict(seed=2**63), "seed=9223372036854775808 must be below 2"),
        (dict(lr=-1.0), "lr=-1.0 must be a number, not negative"),
        (dict(lr=math.nan), "lr=nan must be a number"),
        (dict(beta2=1.5), "beta2=1.5 must be from 0 to 1"),
        (dict(schedule="cos"), "schedule='cos' is not known"),
        (dict(dtype="fp8"), "dtype='fp8' is not known"),
    ],
)
def test_bad_recipes(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


def test_bfloat16_trains(tmp_path: Path) -> None:
    _, full = run(tmp_path / "full")
    _, mixed = run(tmp_path / "mixed", replace(HOW, dtype="bfloat16"))
    assert mixed.loss == pytest.approx(full.loss, rel=0.02)
    assert weights(tmp_path / "mixed")["wte.weight"].dtype == torch.float32


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(tmp_path: Path) -> None:
    config = replace(HOW, steps=4)
    exact = replace(MODEL, dropout=0.0)  # a compiled dropout draws other numbers
    run(tmp_path / "eager", config, shape=exact)
    model, _ = run(tmp_path / "compiled", replace(config, compile=True), shape=exact)
    assert "run_blocks" not in vars(model)  # a copy would call the original's
    rows = curve(tmp_path / "compiled")
    told = [row for row in rows if "compile_s" in row]
    assert [row["step"] for row in told] == [2] and told[0]["compile_s"] > 0  # little where its cache is warm
    rows.remove(told[0])
    for one, other in zip(curve(tmp_path / "eager"), rows, strict=True):
        for name in ("loss", "val_loss"):
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=1e-3)


def test_samples_are_kept_with_the_metrics_and_each_once(tmp_path: Path) -> None:
    """Also across a stop in between: a resumed run writes again only what comes after its checkpoint."""
    how = replace(HOW, sample_every=2)

    def interrupt(row: dict) -> None:
        if row["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    options = {"sample": lambda model: "a text"}
    with pytest.raises(Interrupted):
        run(tmp_path, replace(how, log_every=1), listener=interrupt, **options)
    run(tmp_path, how, resume=True, **options)
    samples = [
        row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if row.get("sample") == "a text"
    ]
    assert samples == [2, 4, 6, 8, 10, 12]


def test_metrics_of_numpy_and_tensors_can_be_read_again(tiny_gpt: GPT, tmp_path: Path) -> None:
    given = {"val_loss": np.float64(1.5), "deep": np.float32(2), "one": torch.tensor(3), "text": "as it is"}
    config = TrainConfig(steps=2, warmup=0, eval_every=1, save_every=1, batch_size=2, device="cpu")
    tokens = torch.arange(60) % 97
    batches = TokenBatches(tokens.numpy().astype(np.uint16), 8, 2)
    loss = lambda model, batch: next_token_loss(model, *batch)  # noqa: E731
    train(tiny_gpt, loss, batches, config, tmp_path, evaluate=lambda model: given)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2
    with pytest.raises(ValueError, match=r"evaluate must give val_loss.*\{'loss': 1\}"):
        train(tiny_gpt, loss, batches, config, tmp_path / "other", evaluate=lambda model: {"loss": 1})


def test_configs_of_numpys_numbers_train_and_can_be_opened_and_resumed(tmp_path: Path) -> None:
    """A sweep with ``np.linspace`` gives these; a checkpoint that held them was refused when it was read."""
    shape = replace(MODEL, dropout=np.float64(0.1), n_layer=np.int64(1))
    config = replace(HOW, lr=np.float32(1e-3), beta2=torch.tensor(0.5), steps=3)
    run(tmp_path, config, shape=shape)
    model, result = run(tmp_path, replace(config, steps=6), shape=shape, resume=True)
    assert result.step == 6 and type(model.config.dropout) is type(config.lr) is type(config.beta2) is float
    assert load_gpt(tmp_path / "best.pt")[0].config == model.config


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize("form", [lambda x, y: {"x": x, "y": y, "name": "text"}, Pair])
def test_batches_of_any_form(tiny_gpt: GPT, tmp_path: Path, form: Callable[..., Any]) -> None:
    def loss(model: GPT, batch: Any) -> torch.Tensor:
        x, y = batch if isinstance(batch, Pair) else (batch["x"], batch["y"])
        return next_token_loss(model, x, y)

    batches = TokenBatches(np.arange(60) % 97, 8, 2)
    config = TrainConfig(steps=2, warmup=0, batch_size=2, device="cpu")
    assert train(tiny_gpt, loss, lambda n: form(*batches(n)), config, tmp_path).step == 2


def test_a_model_that_is_wrapped_is_refused(tiny_gpt: GPT, tmp_path: Path) -> None:
    """What is called of it is not compiled, and another name is on every weight."""
    wrapped: Any = torch.compile(tiny_gpt, backend="eager")
    loss = lambda model, batch: next_token_loss(model, *batch)  # noqa: E731
    with pytest.raises(InputError, match="give it unwrapped and set compile"):
        train(wrapped, loss, TokenBatches(np.arange(60) % 97, 8, 2), HOW, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_best_weights_were_left_behind_chooses_anew(tmp_path: Path) -> None:
    """Else there would be none at all where the loss falls no further."""
    losses = iter([3.0, 1.0, 2.5, 2.0, 2.2])
    options: dict[str, Any] = {"evaluate": lambda model: {"val_loss": next(losses)}}
    batches, loss = TokenBatches(TOKENS, 16, 4), lambda model, batch: next_token_loss(model, *batch)
    config, told = replace(HOW, steps=1, eval_every=1, schedule="constant"), []
    train(GPT(MODEL), loss, batches, config, tmp_path, **options)
    (tmp_path / "best.prev.pt").unlink()
    (tmp_path / "best.pt").unlink()
    longer = replace(config, steps=4)
    result = train(GPT(MODEL), loss, batches, longer, tmp_path, **options, listener=told.append, resume=True)
    assert result.best_val_loss == load_checkpoint(tmp_path / "best.pt")["best_val_loss"] == 2.0
    assert any("best.pt is gone" in row.get("note", "") for row in told)
