"""The parts of ``device.py`` that compute: each runs in a process of its own and writes what it has found so far.

A step is ``s2a_bench``'s own (``training_step``), attached, planned and moved to the device as the harness does it.
Gradients are taken first, on the weights as they are made; zeros that a method starts from are drawn from N(0, 0.02),
as in ``fidelity.py``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import gc
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fidelity
import kernels
import s2a
import s2a_baselines  # noqa: F401 - registers its methods where the packages are not installed
import torch
import torch.nn.functional as F
from s2a.ops import custom_ops, reference
from s2a_bench.cells import measure
from s2a_bench.cells.backbones import create
from s2a_bench.cells.device_peak import peak_numbers
from s2a_bench.cells.train import attach, parameter_groups, precision, set_checkpointing, training_step
from s2a_bench.config import BackboneConfig, TrainConfig
from torch import Tensor

BUDGETS = {"vit_base_patch16_224": "320MB", "swin_base_patch4_window7_224": "372MB", "convnext_base": "370MB"}
"""Half of the paper's theoretical memory at batch 32."""
MINIATURES = {"mini_vit": "6MB", "mini_swin": "1MB", "mini_convnext": "9MB"}
"""What a dry run measures; the second budget is one that is refused."""
CLASSES, WARM_UP = 100, 2


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A method as it is measured.

    Attributes:
        method: Registered name.
        options: Of its config.
        checkpointing: timm's, block by block.
        half: Give it the backbone's budget.
        exact: Name of the configuration with its exact gradients; empty: they are not compared.
    """

    method: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpointing: bool = False
    half: bool = False
    exact: str = ""


LEAN = {"activations": "lean"}
CONFIGURATIONS = {
    "s2a exact": Configuration("s2a", {"activations": "exact"}, exact="s2a exact"),
    "s2a lean": Configuration("s2a", LEAN, exact="s2a exact"),
    "s2a half": Configuration("s2a", LEAN, half=True, exact="s2a exact"),
    "s2a paper": Configuration("s2a", {"activations": "paper"}, exact="s2a exact"),
    "lora": Configuration("lora", exact="lora"),
    "lora lean": Configuration("lora", LEAN, exact="lora"),
    "lora + checkpointing": Configuration("lora", checkpointing=True),
    "bias": Configuration("bias"),
    "full": Configuration("full"),
}
"""Name -> configuration, those first that matter most if time runs out."""
FORMATS = {"fp32": ("fp32", "tf32"), "bf16": ("bf16",)}
"""Number format of frozen weights -> precisions of products that are measured with it."""

Write = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What all parts are told.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` in a dry run.
        batch: Images of a step.
        rounds: Steps that are timed.
        deadline: ``time.monotonic()`` at which a part should have ended.
        weights: Backbone -> file of trained weights; others are random.
    """

    device: str
    batch: int
    rounds: int
    deadline: float
    weights: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()


def settings(request: Request, backbone: str, budget: str, name: str, number: str) -> tuple[Any, TrainConfig]:
    """Config of the method, and the recipe."""
    chosen = CONFIGURATIONS[name]
    options = {**chosen.options, "peak_budget": budget} if chosen.half else chosen.options
    # Nothing is frozen under full fine-tuning.
    frozen = "bf16" if number == "bf16" and chosen.method != "full" else "fp32"
    train = TrainConfig(batch_size=request.batch, precision=number, frozen=frozen, checkpointing=chosen.checkpointing)  # type: ignore[arg-type]
    return s2a.method_config(chosen.method, **options), train


@functools.lru_cache(maxsize=1)
def backbone_of(name: str, weights: str | None) -> tuple[Any, int]:
    """A model on the CPU, never to be changed, and the side of its images."""
    model, expected = create(BackboneConfig(name, weights=weights, random_weights=weights is None))
    if weights is None:
        fidelity.sharpen(model)
    return model, expected.size


def adapt(request: Request, backbone: str, budget: str, name: str, number: str) -> tuple[Any, TrainConfig]:
    """An adapted model on the device, and the recipe of its steps."""
    config, train = settings(request, backbone, budget, name, number)
    model, size = backbone_of(backbone, request.weights.get(backbone))
    torch.manual_seed(0)
    adapted = attach(copy.deepcopy(model), config, CLASSES, size, train)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in s2a.trainable_parameters(adapted).items():
            if group_of(key) not in ("bias", "head") and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    set_checkpointing(adapted.backbone, train)
    return adapted.to(request.device).train(), train


def batch_of(request: Request, side: int) -> tuple[Tensor, Tensor]:
    """Images ``(B, 3, side, side)`` and labels, the same for all configurations."""
    images = torch.randn(request.batch, 3, side, side, generator=torch.Generator().manual_seed(2))
    return images.to(request.device), (torch.arange(request.batch) * 7 % CLASSES).to(request.device)


def group_of(name: str) -> str:
    """``fidelity.group_of``, and the two matrices of LoRA."""
    group = fidelity.group_of(name)
    return {"a": "LoRA A", "b": "LoRA B"}.get(name.split(".")[-2], group) if group == "bias" else group


def gradients(adapted: Any, train: TrainConfig, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradient of the loss by group, flat, float64, on the CPU."""
    torch.manual_seed(3)  # Stochastic depth: the same paths for all.
    with precision(train, images.device):
        loss = F.cross_entropy(adapted(images), labels)
    loss.backward()
    found: dict[str, list[Tensor]] = {}
    for name, parameter in s2a.trainable_parameters(adapted).items():
        if parameter.grad is not None:
            found.setdefault(group_of(name), []).append(parameter.grad.flatten().cpu().double())
    adapted.zero_grad(set_to_none=True)
    return {group: torch.cat(parts) for group, parts in found.items() if group != "head"}


def agreement(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Cosine and relative error by group."""
    return {
        group: {
            "cosine": F.cosine_similarity(found[group], exact[group], 0).item(),
            "relative": ((found[group] - exact[group]).norm() / exact[group].norm()).item(),
        }
        for group in exact
        if group in found
    }


@contextlib.contextmanager
def products_in(number: str) -> Iterator[None]:
    """Lets float32 products and convolutions of a CUDA device run in TF32, or not."""
    wanted = "tf32" if number == "tf32" else "ieee"
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = wanted
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def planned(backbone: str) -> list[tuple[str, str]]:
    """Number format of frozen weights and configuration of everything that is measured on a backbone.

    A dry run has all configurations and both formats, but not every pair of them on every backbone.
    """
    pairs = [(frozen, name) for frozen in FORMATS for name in CONFIGURATIONS]
    if backbone not in MINIATURES:
        return pairs
    compared = ("s2a exact", "s2a lean", "s2a half")
    if backbone != next(iter(MINIATURES)):
        return [("fp32", name) for name in compared]
    return [(frozen, name) for frozen, name in pairs if frozen == "fp32" or name in compared]


def measure_in_time(
    kind: str, works: Iterable[tuple[str, Callable[[], list[dict[str, Any]]]]], request: Request, write: Write
) -> None:
    """Measures one thing after another as long as there is time, and writes after each what there is.

    Args:
        kind: Key of the rows in what is written.
        works: What is measured, in words, and what measures it.
        request: Whose time is left.
        write: Takes rows and what was skipped, with the reason.
    """
    found: dict[str, Any] = {kind: [], "skipped": []}
    longest = 0.0
    for what, work in works:
        if request.left < longest:
            found["skipped"].append({"what": what, "why": "no time left"})
            continue
        began = time.monotonic()
        try:
            found[kind] += work()
        except Exception as error:
            found["skipped"].append({"what": what, "why": reason(error)})
        longest = max(longest, time.monotonic() - began)
        write(found)
        gc.collect()
        if request.device == "cuda":
            torch.cuda.empty_cache()
    write(found)


def measure_backbone(backbone: str, budget: str, request: Request, write: Write) -> None:
    """Steps of all configurations of one backbone."""
    exact: dict[tuple[str, str], dict[str, Tensor]] = {}
    works = [
        (
            f"{backbone}, {name}, {frozen}",
            functools.partial(measure_steps, backbone, budget, name, frozen, request, exact),
        )
        for frozen, name in planned(backbone)
    ]
    measure_in_time("steps", works, request, write)


def measure_steps(
    backbone: str,
    budget: str,
    name: str,
    frozen: str,
    request: Request,
    exact: dict[tuple[str, str], dict[str, Tensor]],
) -> list[dict[str, Any]]:
    """A row for each precision; exact gradients are put into ``exact``."""
    adapted, train = adapt(request, backbone, budget, name, frozen)
    images, labels = batch_of(request, adapted.image_size[0])
    simulated = measure.simulated(adapted, train)
    numbers, wanted = FORMATS[frozen], CONFIGURATIONS[name].exact
    compared: dict[str, dict[str, Any]] = {}
    for number in numbers if wanted else ():
        with products_in(number):
            found = gradients(adapted, train, images, labels)
        if wanted == name:
            exact[name, number] = found
        for key, other in (("to_exact", (wanted, number)), ("to_exact_fp32", (wanted, "fp32"))):
            if other in exact:
                compared.setdefault(number, {})[key] = agreement(found, exact[other])
    optimiser = torch.optim.AdamW(parameter_groups(adapted, train), lr=1e-6)

    def step() -> None:
        training_step(adapted, images, labels, optimiser, train)

    rows = []
    for number in numbers:
        with products_in(number):
            peak = peak_of(step, request.device)
            seconds = kernels.seconds(step, torch.device(request.device), request.rounds)
        row = {
            "backbone": backbone,
            "configuration": name,
            "precision": number,
            "batch": request.batch,
            "image_size": list(adapted.image_size),
            "seconds": seconds,
            **peak,
            **simulated,
            **compared.get(number, {}),
        }
        if adapted.plan is not None:
            row["plan"] = str(adapted.plan)
        rows.append(row)
    return rows


def peak_of(step: Callable[[], None], device: str) -> dict[str, float]:
    """The allocator's peak over one step that is not the first; nothing on a CPU."""
    for _ in range(WARM_UP):
        step()
    if device != "cuda":
        return {}
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return peak_numbers(torch.cuda.memory_stats())


def profile(backbone: str, budget: str, request: Request, write: Write, most: int = 15) -> None:
    """The kernels that a step of S2A spends its time in: lean as it comes, and at half."""
    found: dict[str, Any] = {"profile": [], "skipped": []}
    cuda = request.device == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    for name, number in (("s2a lean", "fp32"), ("s2a half", "fp32"), ("s2a lean", "bf16")):
        what = f"profile of {backbone}, {name}, {number}"
        if request.left < 0:
            found["skipped"].append({"what": what, "why": "no time left"})
            continue
        try:
            adapted, train = adapt(request, backbone, budget, name, number)
        except Exception as error:
            found["skipped"].append({"what": what, "why": reason(error)})
            continue
        images, labels = batch_of(request, adapted.image_size[0])
        optimiser = torch.optim.AdamW(parameter_groups(adapted, train), lr=1e-6)
        with products_in(number):
            for _ in range(WARM_UP):
                training_step(adapted, images, labels, optimiser, train)
            with torch.profiler.profile(activities=activities) as recorded:
                training_step(adapted, images, labels, optimiser, train)
        events = recorded.key_averages()
        times = [(event.self_device_time_total if cuda else event.self_cpu_time_total, event) for event in events]
        times = sorted((row for row in times if row[0] > 0), key=lambda row: -row[0])
        found["profile"].append(
            {
                "backbone": backbone,
                "configuration": name,
                "precision": number,
                "microseconds": sum(time for time, _ in times),
                "kernels": [
                    {"name": event.key[:160], "calls": event.count, "microseconds": time}
                    for time, event in times[:most]
                ],
            }
        )
        write(found)
    write(found)


def compare_kernels(request: Request, write: Write, rows: int = 32 * 197, channels: int = 768) -> None:
    """Operators as they are dispatched (Triton on CUDA), and the reference; copies of as many bytes, stock layers."""
    found: dict[str, Any] = {"kernels": [], "skipped": []}
    device = torch.device(request.device)
    triton = importlib.util.find_spec("triton") is not None and device.type == "cuda"
    for number in ("fp32", "bf16"):
        for columns, kind, bits in ((channels, kernels.norms, 10), (4 * channels, kernels.activations, 4)):
            cases = kind(rows, columns, kernels.DTYPES[number], device, bits, custom_ops)
            slow = kind(rows, columns, kernels.DTYPES[number], device, bits, reference)
            for title, (work, count, before) in cases.items():
                if request.left < 0:
                    found["skipped"].append({"what": f"kernel {title}, {number}", "why": "no time left"})
                    continue
                row = {
                    "operator": title,
                    "dtype": number,
                    "shape": [rows, columns],
                    "bytes": count,
                    "by": "stock" if "stock" in title else "Triton" if triton else "reference",
                    "seconds": kernels.seconds(work, device, request.rounds, before),
                    "copy_seconds": kernels.copy_seconds(count, device, request.rounds),
                }
                if "stock" not in title:
                    work, _, before = slow[title]
                    row["reference_seconds"] = kernels.seconds(work, device, request.rounds, before)
                found["kernels"].append(row)
                write(found)
    write(found)


def reason(error: Exception) -> str:
    """The first line of an error; whose it is, if it is not one of ours or of missing memory."""
    said = (str(error).strip().splitlines() or [""])[0]
    return said if isinstance(error, s2a.S2AError | ValueError) else f"{type(error).__name__}: {said}"
