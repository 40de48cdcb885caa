"""``sweep`` and ``report``, and what ``s2a-bench sweep`` needs besides: a checked job and its execution."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s2a_bench.api.arguments import Axes, FilePath, Names, Settings, absolute, fields_of, setting_texts, typed
from s2a_bench.cells.outputs import CHECKPOINT_SECONDS, Keep
from s2a_bench.cells.record import Record
from s2a_bench.errors import Mistakes
from s2a_bench.sweeps.events import Listener, keep_stdout, notify
from s2a_bench.sweeps.request import Request, RunOptions
from s2a_bench.sweeps.resources import ResourceRequest

if TYPE_CHECKING:
    from s2a_bench.reports.build import ReportPaths
    from s2a_bench.sweeps.driver import SweepResult
    from s2a_bench.sweeps.search.choice import Mode


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
        suite: ``mini`` (offline, embedded), ``real`` (for trained weights without a card), ``vtab``, ``fgvc``,
            ``cifar``, ``domainnet``, ``imagenet``; ``own``: your own images, as ``s2a-bench data prepare NAME --from
            DIR`` leaves them under ``data_dir``.
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
        from s2a_bench.sweeps.plan import count_cells
        from s2a_bench.sweeps.stage import SweepStopped

        sentence = f"The cluster went away: {count_cells(found.missing)} were not run; the same call runs them."
        raise SweepStopped(sentence, found.records)
    return found.records


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
        mode = parse_mode(typed(search, str | int, "search"), search_scheduler)
    request = Request(
        **fields_of(Request, others),
        settings=setting_texts(set, "set"),
        axes=setting_texts(sweep, "sweep"),
        data_dir=None if data_dir is None else absolute(data_dir, "data_dir"),
        weights=None if weights is None else absolute(weights, "weights"),
        mirror=not typed(no_mirror, bool, "no_mirror"),
    )
    keep = Keep(Path(absolute(output, "output")))
    with mistakes.collecting():
        keep = Keep(
            keep.output,
            typed(checkpoint_every, float, "checkpoint_every"),
            typed(keep_adapters, bool | None, "keep_adapters"),
            not typed(no_feature_cache, bool, "no_feature_cache"),
        )
    options = RunOptions(keep, ResourceRequest(**fields_of(ResourceRequest, others)))
    job = Job(request, options, mode, typed(tracking_uri, str | None, "tracking_uri"))
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
