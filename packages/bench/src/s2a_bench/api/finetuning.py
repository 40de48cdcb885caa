"""``finetune``: from somebody's own images to an adapter folder."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s2a_bench.api.arguments import FilePath, Settings, absolute, path_text, setting_texts, typed
from s2a_bench.errors import Mistakes
from s2a_bench.sweeps.events import Listener, keep_stdout

if TYPE_CHECKING:
    from s2a_bench.finetuning.result import Result


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
    checkpoint_every: float = 0.0,
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
        checkpoint_every: Seconds between checkpoints; 0: after every epoch, a large state less often so that writing
            takes 5 % of the time at most; infinity: none.
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
    # What "lr" may be is checked with the other numbers, NaN among them.
    hints["lr"] = float if isinstance(lr, float) else float | str | None
    places = {name: path for name, path in (("weights", weights), ("data_dir", data_dir)) if path is not None}
    checked: dict[str, Any] = {"data": ".", "output": Path.cwd() / "finetuned"}
    # A value of the wrong type is named, and its default checked with the rest.
    with mistakes.collecting():
        checked["data"] = path_text(data, "data")
    with mistakes.collecting():
        checked["output"] = Path(absolute(output, "output"))
    with mistakes.collecting():
        checked["settings"] = setting_texts(set, "set")
    for name, path in places.items():
        with mistakes.collecting():
            checked[name] = absolute(path, name)
    for name, value in given.items():
        with mistakes.collecting():
            checked[name] = typed(value, hints[name], name)
    request = FinetuneRequest(**checked)
    check_request(mistakes, request)
    mistakes.raise_all()
    from s2a_bench.finetuning.run import finetune as run_finetuning

    return run_finetuning(request, keep_stdout(listeners))
