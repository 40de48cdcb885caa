"""The Python API: what the command line does, as functions that return data and print nothing.

Importing this module is cheap: torch, Ray and MLflow are imported by the functions that need them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s2a_bench.cells.outputs import CHECKPOINT_SECONDS, Keep, remove_checkpoint
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.sweeps.events import Listener, keep_stdout, notify
from s2a_bench.sweeps.request import Request, RunOptions
from s2a_bench.sweeps.resources import ResourceRequest
from s2a_bench.sweeps.settings import coerce

if TYPE_CHECKING:
    from s2a import ExportReport

    from s2a_bench.finetuning.result import Result
    from s2a_bench.inference.checks import PredictRequest
    from s2a_bench.inference.predict import Prediction
    from s2a_bench.reports.build import ReportPaths
    from s2a_bench.sweeps.driver import SweepResult
    from s2a_bench.sweeps.search.choice import Mode

Names = str | Sequence[str]
"""One name, or several."""

Settings = Mapping[str, Any] | Names
"""``{"train.lr": 0.01}``, or ``"train.lr=0.01"`` texts as on the command line."""

Axes = Mapping[str, Sequence[Any]] | Names
"""``{"method.lrp_rank": [5, 10]}``, or ``"method.lrp_rank=5,10"`` texts as on the command line."""

FilePath = str | os.PathLike[str]


def sweep(
    *,
    suite: str = "mini",
    datasets: Names = (),
    backbones: Names = (),
    methods: Names = (),
    seeds: int | Sequence[int] = (),
    epochs: int | None = None,
    batch_size: int | None = None,
    data_dir: FilePath | None = None,
    output: FilePath = "results",
    tracking_uri: str | None = None,
    experiment: str | None = None,
    set: Settings = (),
    sweep: Axes = (),
    weights: FilePath | None = None,
    random_weights: bool = False,
    image_size: int | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    evaluate: Literal["test", "val", "select"] = "test",
    augment: str = "default",
    no_mirror: bool = False,
    device: str = "cpu",
    serial: bool = False,
    max_concurrent: int | None = None,
    search: str | int = "none",
    search_scheduler: Literal["none", "asha"] = "none",
    checkpoint_every: float = CHECKPOINT_SECONDS,
    keep_adapters: bool | None = None,
    ray_address: str | None = None,
    gpu_memory_gb: float | None = None,
    no_feature_cache: bool = False,
    listeners: Sequence[Listener] = (),
) -> list[Record]:
    """Runs the missing cells of a grid (datasets x backbones x methods x seeds), then reports on all of them.

    As ``s2a-bench sweep`` with the same arguments: the same cells, records, report and tracking store. A cell whose
    record is there and done is not run again. Nothing is printed; what happens goes to the listeners.

    Args:
        suite: ``mini`` (offline, embedded), ``vtab``, ``fgvc``, ``cifar``, ``domainnet``, ``imagenet``; ``own``: your
            own images, as ``s2a-bench data prepare NAME --from DIR`` leaves them under ``data_dir``.
        datasets: Datasets of the suite; its default subset if empty (``own``: all under ``data_dir``).
        backbones: timm names, ``mini_vit``, ...; the suite's default if empty.
        methods: Methods, with options if need be: ``"s2a"``, ``"s2a:activations=exact,bits=8"``.
        seeds: One cell each; the suite's default if empty.
        epochs: Passes over the training images; the recipe's if ``None``.
        batch_size: Images per step; the recipe's if ``None``.
        data_dir: Where prepared datasets lie.
        output: Folder of records, report and the default tracking store.
        tracking_uri: MLflow store: ``sqlite:///PATH`` or ``http://HOST:PORT``; ``<output>/mlflow.db`` if ``None``.
        experiment: One of the paper's (``table1``, ..., ``fig5``), or a ``.toml`` file of that form: its methods and
            backbones where none are named.
        set: ``method.KEY`` for every method that has the option, or ``train.KEY``, and the value.
        sweep: ``method.KEY`` or ``train.KEY``, and its values; of several keys all combinations are run.
        weights: Local .safetensors or .pth file for the backbone.
        random_weights: Start from random weights; the record says so.
        image_size: Side in pixels; the checkpoint's own if ``None``.
        limit_train: Keep this many training images.
        limit_test: Keep this many of the images that are scored.
        evaluate: ``test``: train on train and val, score the test set once. ``val``: train on train, score val.
            ``select``: train on train, keep the epoch that is best on val (``train.patience`` stops early), score the
            test set once with it.
        augment: Random views of training images: ``default`` (the suite's: none for ``mini`` and ``vtab``, ``crop`` for
            the others), ``none``, ``crop``, ``resized-crop``, ``rand`` or ``rand-mM-nN`` (timm's RandAugment of
            magnitude M, N operations).
        no_mirror: Do not mirror training images: left and right matter.
        device: ``cpu``, ``cuda``, ``cuda:0``.
        serial: Run cell after cell in this process, without Ray.
        max_concurrent: Cells at once; chosen by cores and memory if ``None``.
        search: ``none``: each method's default recipe. ``grid``, or a number of random trials: first choose learning
            rate, weight decay and scale on val, with the same number of trials for every method.
        search_scheduler: ``none``: every trial comes to its end. ``asha``: Ray Tune stops trials that fall behind.
        checkpoint_every: Seconds between checkpoints of a running cell; 0: after every epoch, infinity: none.
        keep_adapters: Whether to keep what each cell trained, ``<output>/adapters/CELL.safetensors`` (``s2a.load``
            reads it); ``None``: unless it is larger than 50 MB. What a search's trials trained is not kept.
        ray_address: ``HOST:PORT`` of a running Ray cluster to use instead of this machine; ``auto``: the one here.
        gpu_memory_gb: Memory of a GPU, in GB; cells get shares of it by their predicted memory.
        no_feature_cache: Run the backbone of ``linear`` in every epoch, instead of once.
        listeners: Receive progress events, see ``Listener``.

    Returns:
        A record for every cell, the longest cells first. One that failed has the status ``"failed"`` and the cause in
        ``error``. With a search those of its trials come first; they have ``trial=True``.

    Raises:
        InputError: Bad input, before anything ran: one sentence.
        S2AError: A method or a value that its config does not take, before anything ran.
        SweepStopped: The output folder cannot be written any more, the cluster went away, or a newer version of
            s2a-bench wrote the record of a cell: cells without a record are left. What is done is safe, and the same
            call goes on from there.
        KeyboardInterrupt: As it came. What is done is safe, and the same call goes on from there.
    """
    job = prepare(
        suite=suite,
        datasets=datasets,
        backbones=backbones,
        methods=methods,
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        data_dir=data_dir,
        output=output,
        tracking_uri=tracking_uri,
        experiment=experiment,
        set=set,
        sweep=sweep,
        weights=weights,
        random_weights=random_weights,
        image_size=image_size,
        limit_train=limit_train,
        limit_test=limit_test,
        evaluate=evaluate,
        augment=augment,
        no_mirror=no_mirror,
        device=device,
        serial=serial,
        max_concurrent=max_concurrent,
        search=search,
        search_scheduler=search_scheduler,
        checkpoint_every=checkpoint_every,
        keep_adapters=keep_adapters,
        ray_address=ray_address,
        gpu_memory_gb=gpu_memory_gb,
        no_feature_cache=no_feature_cache,
    )
    found = execute(job, listeners).result
    if found.newer:
        from s2a_bench.sweeps.stage import SweepStopped

        raise SweepStopped(" ".join(found.newer), found.records)
    if found.missing:
        from s2a_bench.sweeps.stage import SweepStopped

        sentence = f"The cluster went away: {found.missing} cells were not run; the same call runs them."
        raise SweepStopped(sentence, found.records)
    return found.records


def run(cell: CellConfig, output: FilePath | None = None, listeners: Sequence[Listener] = ()) -> Record:
    """Runs one cell in this process, without sweep, report and tracking.

    Args:
        cell: The whole input.
        output: Folder to which the record, checkpoints while the cell runs, and what it trained (unless larger than
            50 MB) are written; ``None``: nowhere.
        listeners: Receive ``started``, ``epoch`` and ``finished``.

    Returns:
        The record; one that failed has the status ``"failed"`` and the cause in ``error``.

    Raises:
        InputError: Bad input, before anything ran: one sentence.
        S2AError: A method or a value that its config does not take, before anything ran.
    """
    from s2a_bench.cells import record as records
    from s2a_bench.cells import run as cells_run

    cell_id = cells_run.identify(cell)
    keep = None if output is None else Keep(Path(output).absolute())
    if keep is not None:
        records.check_place(keep.output, cell_id)
    notify(listeners, "started", cell_id)
    record = cells_run.run(cell, lambda metrics: notify(listeners, "epoch", cell_id, metrics), keep)
    if keep is not None:
        records.write(record, keep.output)
        remove_checkpoint(record, keep.output)
    notify(listeners, "finished", record)
    return record


def finetune(
    data: FilePath,
    *,
    backbone: str | None = None,
    method: str = "s2a",
    output: FilePath = "finetuned",
    memory_budget: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    weights: FilePath | None = None,
    image_size: int | None = None,
    lr: float | Literal["find"] | None = None,
    augment: str = "default",
    mirror: bool = True,
    balance: bool = False,
    patience: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    group_column: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    near_duplicates: bool = True,
    skip_unreadable: bool = False,
    set: Settings = (),
    data_dir: FilePath | None = None,
    tracking_uri: str | None = None,
    checkpoint_every: float = CHECKPOINT_SECONDS,
    listeners: Sequence[Listener] = (),
) -> Result:
    """Trains on somebody's own images, from a folder to an adapter folder that ``s2a.from_pretrained`` loads.

    As ``s2a-bench finetune`` with the same arguments. Nothing is printed; what happens goes to the listeners. The best
    epoch by validation accuracy is kept, and scored once on the test images. A call that was cut off goes on from its
    last checkpoint and ends with the same result; one that is finished returns at once.

    Args:
        data: A folder with one folder of images for each class, or with ``train``, ``val``, ``test`` of those; a CSV or
            Parquet table of paths and labels; a Hugging Face ``datasets`` folder; an archive of either; a folder that
            ``s2a-bench data prepare`` made; or the name of one under ``data_dir``.
        backbone: timm or mini backbone; ``None``: a good one for the device, or the embedded ``mini_vit`` where its
            weights are neither here nor reachable (said in the notes).
        method: Method, with options if need be; activations are ``lean`` unless it says otherwise.
        output: Gets ``adapter/``, ``metrics.json``, ``report.html``, the record, the checkpoint while it runs, and
            MLflow's ``mlflow.db``. Results of another cell that lie there are moved to ``previous/CELL/``.
        memory_budget: ``"8GiB"``, for a whole training step; ``None``: 90 % of what is free on the card, and no limit
            on a CPU.
        epochs: Passes over the training images; ``None``: 5 to 30, the fewer the more images there are.
        batch_size: Images per step; ``None``: 32, fewer for few images or a small budget.
        seed: Of the splits, of new parameters, and of the order of the images.
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:0"``.
        weights: Local weights file of the backbone.
        image_size: Side in pixels; ``None``: 224, or less where the checkpoint's own is smaller.
        lr: Peak learning rate; ``"find"``: by a range test on the training images; ``None``: the method's recipe.
        augment: Of training images, see ``DataConfig.augment``.
        mirror: Whether training images are mirrored at random.
        balance: Weight the classes of the loss by their inverse frequency.
        patience: Stop after so many epochs without a better validation accuracy; 0: train to the end.
        val: Share of the images drawn for validation, where the data have no such part.
        test: Share drawn for the test; 0: none, and the validation images are scored.
        group_column: Column of a table: rows with the same value stay in one part.
        path_column: Column of a table with the paths; ``None``: found by its name.
        label_column: Column of a table with the labels; ``None``: found by its name.
        split_column: Column of a table with the parts; ``None``: found by its name.
        near_duplicates: Keep images that look the same in one part.
        skip_unreadable: Leave images out that cannot be read; otherwise they are an error.
        set: ``train.KEY`` or ``method.KEY``, and the value.
        data_dir: Where prepared datasets lie, if ``data`` is the name of one.
        tracking_uri: MLflow store; ``<output>/mlflow.db`` if ``None``. That MLflow fails is only a message.
        checkpoint_every: Seconds between checkpoints; 0: after every epoch, infinity: none.
        listeners: Receive progress events, see ``Listener``; one that has a method ``progress(what, done, total)`` is
            told how far the preparation of the images is.

    Returns:
        The adapter folder, the metrics, the record, the page and the class names.

    Raises:
        InputError: Bad input, before anything was written: one sentence for each mistake.
        S2AError: A method or a value that its config does not take, before anything was written.
        FinetuneFailed: The training failed; its record says why.
        KeyboardInterrupt: As it came; the best epoch so far is in ``output``, and the same call goes on.
    """
    from s2a_bench.finetuning.request import FinetuneRequest, check_request

    given: dict[str, Any] = {
        "backbone": backbone,
        "method": method,
        "memory_budget": memory_budget,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "image_size": image_size,
        "lr": lr,
        "augment": augment,
        "mirror": mirror,
        "balance": balance,
        "patience": patience,
        "val": val,
        "test": test,
        "group_column": group_column,
        "path_column": path_column,
        "label_column": label_column,
        "split_column": split_column,
        "near_duplicates": near_duplicates,
        "skip_unreadable": skip_unreadable,
        "tracking_uri": tracking_uri,
        "checkpoint_every": checkpoint_every,
    }
    hints = typing.get_type_hints(FinetuneRequest)
    mistakes = Mistakes()
    for name, value in given.items():
        with mistakes.collecting():
            given[name] = _typed(value, hints[name] if name != "lr" else float | str | None, name)
    mistakes.raise_all()
    request = FinetuneRequest(
        data=os.fspath(data),
        output=Path(_absolute(output, "output")),
        weights=None if weights is None else _absolute(weights, "weights"),
        data_dir=None if data_dir is None else _absolute(data_dir, "data_dir"),
        settings=_setting_texts(set, "set"),
        **given,
    )
    check_request(mistakes, request)
    mistakes.raise_all()
    from s2a_bench.finetuning.run import finetune as run_finetuning  # torch with it, which mistakes need not wait for

    return run_finetuning(request, keep_stdout(listeners))


def report(output: FilePath = "results") -> ReportPaths:
    """Writes the report of all records under a folder: ``report.html``, ``report.md`` and figures.

    Args:
        output: Folder of a sweep.

    Returns:
        The paths of what was written: ``html``, ``markdown`` and ``figures``.

    Raises:
        InputError: There is nothing to report on.
    """
    from s2a_bench.reports.build import build

    return build(Path(output).absolute())


def predict(
    folder: FilePath,
    images: FilePath | Sequence[FilePath],
    *,
    top: int = 5,
    batch_size: int = 32,
    weights: FilePath | None = None,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Class names and probabilities of images, by a trained adapter.

    Args:
        folder: An adapter folder, the output folder of ``finetune``, or a hub id ``owner/name``.
        images: Files, folders (everything below that has the suffix of an image), patterns (``"photos/**/*.jpg"``).
        top: Classes per image, the most probable ones.
        batch_size: Images at once.
        weights: File of the backbone's weights; ``None``: as the adapter says.
        device: ``cpu``, ``cuda``, ``cuda:0``; ``auto``: a GPU if there is one.
        progress: Called after each batch with the images done and all of them.

    Returns:
        One for each image, in the order in which they are named, each file once. Of a bad image ``error`` says why,
        and ``label`` is ``None``.

    Raises:
        InputError: No adapter, paths that do not exist or hold no image, numbers out of range: one sentence for each.
        S2AError: The adapter cannot be loaded.
    """
    request = prepare_predict(folder, images, top=top, batch_size=batch_size, weights=weights, device=device)
    from s2a_bench.inference.predict import load_adapter, predictions

    adapted = load_adapter(request.adapter, request.weights, request.device)
    return list(predictions(adapted, request.paths, request.top, request.batch_size, progress))


def export(
    folder: FilePath,
    path: FilePath,
    format: Literal["timm", "onnx", "torch"] = "timm",
    *,
    images: FilePath | Sequence[FilePath] = (),
    weights: FilePath | None = None,
) -> ExportReport:
    """Writes an adapter as a file that runs without this library, once it was found to give the same logits.

    Args:
        folder: An adapter folder, the output folder of ``finetune``, or a hub id ``owner/name``.
        path: Of the file (``.onnx``, ``.pt2``, ``.safetensors``) or the folder (``timm``).
        format: See ``s2a.export``.
        images: Files, folders or patterns to compare on, 16 of them at most; rendered images if empty.
        weights: File of the backbone's weights; ``None``: as the adapter says.

    Returns:
        How far the file is from the adapter.

    Raises:
        InputError: No adapter, or paths that do not fit: one sentence for each.
        S2AError: The adapter cannot be loaded, its method does not merge, or the logits differ.
    """
    from s2a_bench.inference.checks import check_export_path, check_weights, find_adapter
    from s2a_bench.inference.paths import find_images

    mistakes = Mistakes()
    given, target = _path_or_none(weights, "weights"), Path(_absolute(path, "path"))
    adapter, paths = "", []
    with mistakes.collecting():
        adapter = find_adapter(folder)
    with mistakes.collecting():
        check_export_path(target, format)
    with mistakes.collecting():
        check_weights(given)
    with mistakes.collecting():
        paths = find_images(_paths(images))
    mistakes.raise_all()
    from s2a_bench.inference.export import export_adapter

    return export_adapter(adapter, target, format, paths, given)


# What the command line needs besides


def prepare_predict(
    folder: FilePath,
    images: FilePath | Sequence[FilePath],
    *,
    listed: Sequence[str] = (),
    top: int,
    batch_size: int,
    weights: FilePath | None,
    device: str,
) -> PredictRequest:
    """Checks the arguments of ``predict`` without torch.

    Args:
        folder: As ``predict``, and so are the others.
        images: Likewise; ``"-"`` stands for ``listed``.
        listed: Names of files and folders; one that does not exist becomes a bad image.
        top: Likewise.
        batch_size: Likewise.
        weights: Likewise.
        device: Likewise.

    Raises:
        InputError: As ``predict``.
    """
    from s2a_bench.inference.checks import PredictRequest, check_count, check_weights, find_adapter
    from s2a_bench.inference.paths import find_images
    from s2a_bench.sweeps.checks.devices import check_device_name

    mistakes = Mistakes()
    given = _path_or_none(weights, "weights")
    adapter, paths = "", []
    with mistakes.collecting():
        adapter = find_adapter(folder)
    with mistakes.collecting():
        paths = find_images(_paths(images), listed)
        if not paths:
            raise InputError("There are no images: give files, folders or patterns.")
    for name, value in (("top", top), ("batch_size", batch_size)):
        with mistakes.collecting():
            check_count(name, value)
    with mistakes.collecting():
        check_weights(given)
    if device != "auto":
        with mistakes.collecting():
            check_device_name(device)
    mistakes.raise_all()
    return PredictRequest(adapter, paths, top, batch_size, given, device)


@dataclasses.dataclass(frozen=True)
class Job:
    """A sweep with checked arguments.

    Attributes:
        request: What to run.
        options: How to run it.
        mode: Of the search; ``None``: no search.
        tracking_uri: MLflow store, as given.
    """

    request: Request
    options: RunOptions
    mode: Mode | None
    tracking_uri: str | None


@dataclasses.dataclass(frozen=True)
class Finished:
    """A sweep that came to its end.

    Attributes:
        result: Its records.
        report: What was reported; ``None``: nothing (a search alone, or no records).
        tracking_uri: The MLflow store that holds it; ``None``: nothing was tracked.
    """

    result: SweepResult
    report: ReportPaths | None
    tracking_uri: str | None


def prepare(
    *,
    output: FilePath,
    tracking_uri: str | None,
    set: Settings,
    sweep: Axes,
    search: str | int,
    search_scheduler: Literal["none", "asha"],
    checkpoint_every: float,
    keep_adapters: bool | None,
    no_feature_cache: bool,
    no_mirror: bool,
    data_dir: FilePath | None,
    weights: FilePath | None,
    **others: Any,
) -> Job:
    """Checks the arguments of ``sweep``, as far as that needs no torch, and sorts them by what they are about.

    Args:
        output: As ``sweep``, and so are all others.
        tracking_uri: Likewise.
        set: Likewise.
        sweep: Likewise.
        search: Likewise.
        search_scheduler: Likewise.
        checkpoint_every: Likewise.
        keep_adapters: Likewise.
        no_feature_cache: Likewise.
        no_mirror: Likewise.
        data_dir: Likewise.
        weights: Likewise.
        **others: Fields of ``Request`` and ``ResourceRequest``.

    Raises:
        InputError: Unknown names, values of the wrong type or form, missing files: one sentence for each.
    """
    from s2a_bench.sweeps.search.choice import parse_mode

    for name in ("datasets", "backbones", "methods", "seeds"):
        if isinstance(others[name], str | int) and not isinstance(others[name], bool):
            others[name] = (others[name],)
    mistakes = Mistakes()
    mode = None
    with mistakes.collecting():
        mode = parse_mode(_typed(search, str | int, "search"), search_scheduler)
    request = Request(
        **_fields(Request, others),
        settings=_setting_texts(set, "set"),
        axes=_setting_texts(sweep, "sweep"),
        data_dir=None if data_dir is None else _absolute(data_dir, "data_dir"),
        weights=None if weights is None else _absolute(weights, "weights"),
        mirror=not _typed(no_mirror, bool, "no_mirror"),
    )
    keep = Keep(Path(_absolute(output, "output")))
    with mistakes.collecting():
        keep = Keep(
            keep.output,
            _typed(checkpoint_every, float, "checkpoint_every"),
            _typed(keep_adapters, bool | None, "keep_adapters"),
            not _typed(no_feature_cache, bool, "no_feature_cache"),
        )
    options = RunOptions(keep, ResourceRequest(**_fields(ResourceRequest, others)))
    job = Job(request, options, mode, _typed(tracking_uri, str | None, "tracking_uri"))
    _check(job, mistakes)
    return job


def _check(job: Job, mistakes: Mistakes) -> None:
    """Checks names, options, values and paths without torch, so that mistakes are cheap.

    Raises:
        InputError: Everything that is wrong, with what was found before.
    """
    from s2a_bench.sweeps.checks.options import check_options
    from s2a_bench.sweeps.checks.request import check_data, check_request
    from s2a_bench.tracking.store import check_uri

    check_request(mistakes, job.request)
    with mistakes.collecting():
        check_data(job.request)
    check_options(mistakes, job.options, job.request, job.mode)
    if job.tracking_uri is not None:
        with mistakes.collecting():
            check_uri(job.tracking_uri, job.options.keep.output)
    mistakes.raise_all()


def execute(job: Job, listeners: Sequence[Listener] = ()) -> Finished:
    """Runs a sweep with its report and its tracking store.

    Raises:
        ValueError: As ``sweep``, and the other errors too.
    """
    from s2a_bench.reports.listener import ReportWriter
    from s2a_bench.sweeps.driver import run_sweep
    from s2a_bench.tracking.listener import Tracker

    listeners = keep_stdout(listeners)
    message = functools.partial(notify, listeners, "message")
    tracker = Tracker(job.request.suite, job.tracking_uri, job.options.keep.output, message)
    writer = ReportWriter(job.options.keep.output, message)
    # The report is written first: the tracker logs it too. Listeners are told when both are done.
    result = run_sweep(job.request, job.options, [writer, tracker, *listeners], job.mode)
    return Finished(result, writer.paths, None if tracker.missing else tracker.uri)


def _typed(value: Any, hint: Any, name: str) -> Any:
    if hint is float and isinstance(value, float):  # infinity too
        return value
    return coerce(value, hint, name)


def _fields(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that are fields of a dataclass, with their types checked."""
    hints = typing.get_type_hints(cls)
    return {f.name: _typed(given[f.name], hints[f.name], f.name) for f in dataclasses.fields(cls) if f.name in given}


def _paths(given: FilePath | Sequence[FilePath]) -> list[FilePath]:
    return [given] if isinstance(given, str | os.PathLike) else list(given)


def _path_or_none(path: FilePath | None, name: str) -> Path | None:
    return None if path is None else Path(_absolute(path, name))


def _absolute(path: FilePath, name: str) -> str:
    try:
        return str(Path(path).absolute())  # workers run in another folder
    except TypeError:
        raise InputError(f"{name}={path!r} has the wrong type; it must be a path.") from None


def _setting_texts(given: Settings | Axes, name: Literal["set", "sweep"]) -> tuple[str, ...]:
    """``KEY=VALUE`` texts of a mapping, or the texts themselves."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Mapping):
        return _typed(given, tuple[str, ...], name)
    texts = []
    for key, value in given.items():
        values = value if name == "sweep" else [value]
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"{name}={{{key!r}: {value!r}}}: give a list of the values that {key} takes.")
        try:
            texts.append(f"{key}={','.join(json.dumps(each, allow_nan=False) for each in values)}")
        except (TypeError, ValueError):
            raise InputError(
                f"{name}={{{key!r}: {value!r}}}: give a number, a text, true, false, None, or a list of those."
            ) from None
    return tuple(texts)
