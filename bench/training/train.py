# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Train the small model on one GPU, in stretches.

    PYTHONPATH=bench python -m training.train --out state --minutes 9 --mix short:1
    PYTHONPATH=bench python -m training.train --out state --resume state --mix medium:3,long:1

A stretch goes on where the last one stopped: weights, first or second moments and the index of the
next batch. Batch i is a function of the seed and i, whatever the number of workers. What a stretch
leaves fits in files under 16 MiB: weights in float32 (three parts), moments in bfloat16, and
the averaged weights in bfloat16 as the model's own file.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.owned import check, mark, place_to_write
from stream_vlm_ros.world.draw import glyph_atlas
from training.config import model_config, save_settings
from training.network import Network
from training.rows import SIZES, RowMaker

TRAINING = "training of the small model"  # in the mark of its folder


class Rows(torch.utils.data.Dataset):
    """Batches by index, as tensors."""

    def __init__(self, maker: RowMaker) -> None:
        self.maker = maker

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> dict:
        batch = self.maker.batch(index)
        return {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()
        }


def orthogonal(matrices):
    """The nearest orthogonal matrices to a stack [n, a, b], a <= b, roughly (Newton-Schulz)."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


class Muon:
    """Momentum whose steps are made orthogonal, for the layers' matrices, grouped by shape.

    A step has the size of an AdamW step of the same rate (root mean square 0.2).
    """

    def __init__(self, parameters, decay: float, momentum: float = 0.95, compiled: bool = True):
        self.parameters, self.decay, self.momentum = list(parameters), decay, momentum
        self.moments = [torch.zeros_like(p) for p in self.parameters]
        self.orthogonal = torch.compile(orthogonal, dynamic=False) if compiled else orthogonal
        self.groups = collections.defaultdict(list)
        for index, p in enumerate(self.parameters):
            self.groups[tuple(p.shape)].append(index)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change the parameters by their gradients."""
        torch._foreach_mul_(self.parameters, 1 - rate * self.decay)
        for (rows, columns), indices in self.groups.items():
            grads = [self.parameters[i].grad for i in indices]
            moments = [self.moments[i] for i in indices]
            torch._foreach_lerp_(moments, grads, 1 - self.momentum)
            ahead = torch.stack(torch._foreach_lerp(grads, moments, self.momentum))
            step = self.orthogonal(ahead.mT if rows > columns else ahead)
            step = step.mT if rows > columns else step
            size = -rate * 0.2 * math.sqrt(max(rows, columns))
            torch._foreach_add_(
                [self.parameters[i] for i in indices], list(step.float().unbind(0)), alpha=size
            )


class Trainer:
    """The state of a run: model, optimisers, averaged weights, index of the next batch."""

    def __init__(
        self, device: str, muon: bool, decay: float, compiled: bool, seed: int = 0
    ) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration

        torch.manual_seed(seed)
        self.model = Qwen2_5_VLForConditionalGeneration(model_config()).to(device).float()
        self.model.tie_weights()
        self.names = [name for name, _ in self.model.named_parameters()]
        self.parameters = [p for _, p in self.model.named_parameters()]
        self.index = 0
        with torch.no_grad():  # residual branches start small
            for name, p in self.model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                    p.mul_(0.3)
        self.device = device
        self.network = Network(self.model, compiled)
        matrix = {
            id(p)
            for name, p in zip(self.names, self.parameters, strict=True)
            if muon and self._is_matrix(name, p)
        }
        rest = [p for p in self.parameters if id(p) not in matrix]
        groups = [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=device != "cpu")
        found = [p for p in self.parameters if id(p) in matrix]
        self.muon = Muon(found, decay, compiled=compiled) if found else None
        self.average = [p.detach().clone() for p in self.parameters]

    @staticmethod
    def _is_matrix(name: str, p) -> bool:
        return p.ndim == 2 and "embed" not in name and "lm_head" not in name

    def step(self, batch: dict, rate: float, clip: float = 1.0):
        """One step on a batch on the device; returns losses, hits and the gradient's norm."""
        size = SIZES[batch["size"]]
        loss, hits = self.network.losses(batch, size.prefix)
        count = (batch["labels"] >= 0).sum()
        mean = loss.sum() / count
        mean.backward()
        grads = [p.grad for p in self.parameters if p.grad is not None]
        length = torch.nn.utils.get_total_norm(grads)
        torch._foreach_mul_(grads, (clip / (length + 1e-6)).clip(max=1.0))
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        if self.muon:
            self.muon.step(rate)
        self.adam.zero_grad(set_to_none=True)
        for p in self.parameters:
            p.grad = None
        self.index += 1
        if self.index % 5 == 0:
            torch._foreach_lerp_(self.average, self.parameters, 0.02)
        return mean.detach(), hits, length

    def snapshot(self) -> list:
        """A copy of the weights, plain and averaged."""
        return [p.detach().clone() for p in (*self.parameters, *self.average)]

    @torch.no_grad()
    def restore(self, copies: list) -> None:
        """Go back to a snapshot after a step went to NaN, with moments from nothing."""
        torch._foreach_copy_([*self.parameters, *self.average], copies)
        self.adam.state.clear()
        if self.muon:
            torch._foreach_zero_(self.muon.moments)

    def save(self, folder: Path, log: list) -> None:
        """Leave what the next stretch needs, and the model as its users load it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        flat = torch.cat([p.detach().flatten() for p in self.parameters]).cpu()
        for part, piece in enumerate(flat.chunk(3)):
            torch.save(piece.clone(), folder / f"weights{part}.pt")
        torch.save([m.bfloat16().cpu() for m in self._moments()], folder / "moments.pt")
        average = {
            n: a.bfloat16().cpu().contiguous()
            for n, a in zip(self.names, self.average, strict=True)
        }
        save_file(self._released(average), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "log.json").write_text(json.dumps({"index": self.index, "log": log}))

    @staticmethod
    def _released(weights: dict) -> dict:
        """Names as in the released checkpoints: visual.*, model.*."""
        names = {}
        for name, value in weights.items():
            name = name.replace("model.visual.", "visual.").replace(
                "model.language_model.", "model."
            )
            names[name] = value
        return names

    def _moments(self) -> list:
        kept = [
            self.adam.state[p]["exp_avg_sq"]
            for g in self.adam.param_groups
            for p in g["params"]
            if p in self.adam.state
        ]
        return kept + (self.muon.moments if self.muon else [])

    def resume(self, folder: Path) -> list:
        """Go on from a stretch; returns its log. AdamW's first moments start from nothing."""
        flat = torch.cat([torch.load(folder / f"weights{part}.pt") for part in range(3)]).to(
            self.device
        )
        moments = torch.load(folder / "moments.pt")
        with torch.no_grad():
            sizes = [p.numel() for p in self.parameters]
            for p, a, piece in zip(self.parameters, self.average, flat.split(sizes), strict=True):
                p.copy_(piece.view_as(p))
                a.copy_(p)
            listed = [p for g in self.adam.param_groups for p in g["params"]]
            for p in listed:
                self.adam.state[p] = {
                    "step": torch.tensor(1000.0, device=self.device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": moments.pop(0).to(p),
                }
            for m in self.muon.moments if self.muon else ():
                m.copy_(moments.pop(0).to(m))
        saved = json.loads((folder / "log.json").read_text())
        self.index = saved["index"]
        return saved["log"]


def right_by_type(batch: dict, hits, prefix: int) -> dict[str, tuple[int, int]]:
    """(right, asked) of each type of question in a batch; right means the whole answer is."""
    labels, asked = batch["labels"][:, prefix:], batch["asked"][:, prefix:]
    missed = ((labels >= 0) & ~hits.view_as(labels)).cpu().numpy()
    asked = asked.cpu().numpy()
    counts: dict[str, list[int]] = {}
    for row, types in enumerate(batch["types"]):
        wrong = set(asked[row][missed[row]].tolist())
        for number, type_ in enumerate(types, 1):
            count = counts.setdefault(type_, [0, 0])
            count[0] += number not in wrong
            count[1] += 1
    return {key: tuple(count) for key, count in counts.items()}


def _own_folder(name: str) -> Path:
    """The folder of the training's state, made and marked; one that is not ours is refused."""
    folder = place_to_write("--out", name)
    check(folder, TRAINING, known=lambda there: (there / "moments.pt").is_file(), link=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark(folder, TRAINING)
    except OSError as error:
        raise InvalidParameterError(f"--out {folder} cannot be used: {error}") from error
    return folder


def main(argv: list[str] | None = None) -> None:
    """Run one stretch."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--out", required=True)
    parse.add_argument("--resume", type=Path)
    parse.add_argument("--minutes", type=float, default=9.0)
    parse.add_argument("--steps", type=int, default=1 << 30)
    parse.add_argument(
        "--mix", default="short:1", help="sizes of rows and shares, as short:1,long:2; stages by "
        "first batch, as 0=short:1;2000=long:1"
    )  # fmt: skip
    parse.add_argument("--tokens", type=int, default=196608, help="tokens a step")
    parse.add_argument("--rate", default="7e-4:7e-4", help="learning rate at the start and the end")
    parse.add_argument("--warmup", type=int, default=200)
    parse.add_argument("--decay", type=float, default=0.05)
    parse.add_argument("--muon", action="store_true")
    parse.add_argument(
        "--weights", help="share of types of questions, as now:1,ago:2; others keep theirs"
    )
    parse.add_argument("--seed", default="train")
    parse.add_argument("--workers", type=int, default=14)
    parse.add_argument("--plain", action="store_true", help="do not compile")
    parse.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parse.add_argument("--keep", type=float, default=1e9, help="minutes between savings")
    parse.add_argument(
        "--flat", type=float, default=0.0, help="share of the stretch before the rate falls"
    )
    parse.add_argument("--profile", action="store_true", help="time the parts of a step and stop")
    args = parse.parse_args(argv)
    try:
        args.out = _own_folder(args.out)
    except StreamVlmError as refusal:
        parse.error(str(refusal))
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.cache_size_limit = 64
    began = time.time()
    trainer = Trainer(args.device, args.muon, args.decay, not args.plain)
    log = trainer.resume(args.resume) if args.resume else []
    mix = []
    for stage in args.mix.split(";"):
        first, _, shares = stage.rpartition("=")
        parts = (part.split(":") for part in shares.split(","))
        mix.append((int(first or 0), {name: float(share) for name, share in parts}))
    from training.rows import WEIGHTS

    weights = dict(WEIGHTS)
    if args.weights:
        weights.update(
            {k: float(v) for k, v in (part.split(":") for part in args.weights.split(","))}
        )
    maker = RowMaker(args.seed, mix, args.tokens, weights)
    loader = torch.utils.data.DataLoader(
        Rows(maker), batch_size=None, sampler=range(trainer.index, trainer.index + 10_000_000),
        num_workers=args.workers, prefetch_factor=4 if args.workers else None,
        pin_memory=args.device != "cpu", multiprocessing_context="fork" if args.workers else None,
    )  # fmt: skip
    atlas = torch.from_numpy(glyph_atlas()).to(args.device)
    first, last = map(float, args.rate.split(":"))
    start, started, waited, sums = trainer.index, time.time(), 0.0, collections.Counter()
    losses, lengths, mark, marked = [], [], time.time(), trainer.index
    rows = questions = 0
    before, kept, slower, safe = time.time(), time.time(), 1.0, trainer.snapshot()
    deadline = began + 60 * args.minutes
    for batch in loader:
        waited += time.time() - before
        now = time.time()
        if now > deadline or trainer.index - start >= args.steps:
            break
        share = (now - began) / (60 * args.minutes)
        if args.steps < 1 << 30:
            share = (trainer.index - start) / args.steps
        fall = max(0.0, share - args.flat) / max(1e-6, 1.0 - args.flat)
        rate = slower * (first + (last - first) * fall)
        rate *= min(1.0, (trainer.index - start + 1) / args.warmup)
        batch = {
            k: v.to(args.device, non_blocking=True) if isinstance(v, torch.Tensor) else v
            for k, v in batch.items()
        }
        batch["atlas"] = atlas
        loss, hits, length = trainer.step(batch, rate)
        losses.append(loss)
        lengths.append(length)
        rows += len(batch["types"])
        questions += sum(map(len, batch["types"]))
        if trainer.index % 20 == 0:
            for key, (good, all_) in right_by_type(
                batch, hits, SIZES[batch["size"]].prefix
            ).items():
                sums[key, 0] += good
                sums[key, 1] += all_
        if trainer.index % 200 == 0 or trainer.index - start in (1, 2, 5, 10, 50):
            mean = torch.stack(losses).mean().item()
            top = torch.stack(lengths).max().item()
            took = time.time() - mark
            entry = dict(
                step=trainer.index, seconds=round(time.time() - began, 1), rate=rate, loss=mean,
                norm=top, step_ms=1e3 * took / (trainer.index - marked),
                waited=round(waited / took, 3),
                rows=rows, questions=questions,
                right={k: round(100 * sums[k, 0] / sums[k, 1], 1) for k in weights if sums[k, 1]},
            )  # fmt: skip
            log.append(entry)
            right = " ".join(f"{k}:{v:.0f}" for k, v in entry["right"].items())
            print(
                f"{entry['step']} {entry['seconds']:.0f}s loss {mean:.3f} norm {top:.2f} "
                f"{entry['step_ms']:.0f}ms wait {entry['waited']:.2f} rows {rows} | {right}",
                flush=True,
            )
            if math.isfinite(mean):
                safe = trainer.snapshot()
            else:
                trainer.restore(safe)
                slower *= 0.7
            if time.time() - kept > 60 * args.keep:
                trainer.save(args.out, log)
                kept = time.time()
            losses, lengths, sums, waited = [], [], collections.Counter(), 0.0
            mark, marked = time.time(), trainer.index
        if args.profile and trainer.index - start == 60:
            profile(trainer, batch, rate)
        before = time.time()
    print(f"{trainer.index - start} steps in {time.time() - started:.0f} s", flush=True)
    trainer.save(args.out, log)
    trainer.model.config.save_pretrained(args.out)
    save_settings(args.out)


def profile(trainer: Trainer, batch: dict, rate: float) -> None:
    """Print where a step's device time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    torch.cuda.synchronize()
    began = time.time()
    for _ in range(10):
        trainer.step(batch, rate)
    torch.cuda.synchronize()
    print(
        f"step {100 * (time.time() - began):.1f} ms, "
        f"peak {torch.cuda.max_memory_allocated() >> 20} MiB"
    )
    net = trainer.network

    def timed(name, function):
        function()
        torch.cuda.synchronize()
        began = time.time()
        for _ in range(5):
            function()
        torch.cuda.synchronize()
        print(f"{name} {200 * (time.time() - began):.1f} ms")

    def draw():
        return net.draw(batch)

    patch = draw()
    timed("draw", draw)
    timed("vision forward", lambda: net.see(patch))
    timed("vision forward and backward", lambda: net.see(patch).sum().backward())
    with torch.no_grad():
        seen = net.see(patch)
    timed("text forward", lambda: net.hidden(batch, seen))
    timed("text forward and backward", lambda: net.hidden(batch, seen).float().sum().backward())
    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen_by:
        for _ in range(3):
            trainer.step(batch, rate)
        torch.cuda.synchronize()
    print(
        seen_by.key_averages().table(
            sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=70
        )
    )


if __name__ == "__main__":
    main()
