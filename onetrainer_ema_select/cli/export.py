"""`export`: a model out of a backup."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from onetrainer_ema_select.cli.common import JsonOption, OneTrainerOption, echo_json, size_text
from onetrainer_ema_select.errors import UsageError
from onetrainer_ema_select.host.export import ExportResult, Progress
from onetrainer_ema_select.host.export import export as export_backup
from onetrainer_ema_select.naming import set_suffix
from onetrainer_ema_select.origin import PACKAGE

EXAMPLE = (
    f"Example: {PACKAGE} export workspace/run/backup/2026-01-31_12-00-00-backup-900-3-0 "
    "--set non-ema --output models/portrait-non-ema.safetensors"
)


# Of every verb that writes a model.
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="PATH", help="The file or folder to write. A folder that exists takes files."
    ),
]
FormatOption = Annotated[
    str, typer.Option(metavar="FORMAT", show_default="the run's", help="One of OneTrainer's output formats.")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE", show_default="the run's", help="FLOAT_32, FLOAT_16, BFLOAT_16, or NONE: the weights' own."
    ),
]
RoundingOption = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        show_default="the run's",
        help="At 16 bits: nearest, or stochastic, which keeps a slow EMA's movement on average.",
    ),
]
BaseModelOption = Annotated[
    str,
    typer.Option(
        metavar="PATH", show_default="as in the run", help="Where the base model of a LoRA or embedding is now."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", show_default="the backup's own", help="The run's config, if the backup lost it."),
]
ConfigValueOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", show_default=False, help="Override one value of the config, as OneTrainer's option."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would be done.")]


class Sets(str, Enum):
    """What can be asked for."""

    EMA = "ema"
    NON_EMA = "non-ema"
    BOTH = "both"


def export(
    backup: Annotated[Path, typer.Argument(metavar="BACKUP", help="A backup's folder, of any run of OneTrainer.")],
    output: OutputOption,
    *,
    sets: Annotated[Sets, typer.Option("--set", help="Which set; both get names that tell them apart.")] = Sets.EMA,
    format: FormatOption = "",  # noqa: A002 - the option's name
    dtype: DtypeOption = "",
    rounding: RoundingOption = "",
    base_model: BaseModelOption = "",
    config: ConfigOption = None,
    config_value: ConfigValueOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    onetrainer: OneTrainerOption = None,
) -> None:
    """Make a usable model out of a backup, exactly as OneTrainer would have saved it.

    Works for backups made with and without the plugin: fine-tunes, LoRAs, embeddings. Every written tensor is read
    back and compared; the files appear when they are whole, or not at all.
    """
    with progress_bar() as progress, usage_errors():
        result = export_backup(
            backup,
            output,
            sets=sets.value,
            format=format,
            dtype=dtype,
            rounding=rounding,
            base_model=base_model,
            config=config,
            config_values=config_value or (),
            overwrite=overwrite,
            dry_run=dry_run,
            onetrainer=onetrainer,
            progress=progress,
        )
    if as_json:
        echo_json({"schema": 1, **result.model_dump(mode="json")})
    else:
        print_result(result)


@contextmanager
def usage_errors() -> Iterator[None]:
    """A mistake in the command ends it with exit code 2, like one that the command line finds itself."""
    try:
        yield
    except UsageError as error:
        raise typer.BadParameter(str(error)) from error


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar for what takes longer than two seconds; it says what is being done."""
    bar: tqdm[Any]
    # None: off where nobody watches, as in a log file
    with tqdm(total=0, unit="B", unit_scale=True, delay=2, file=sys.stderr, leave=False, disable=None) as bar:
        try:
            yield progress_into(bar)
        finally:
            bar.clear()  # closing clears only what `update` has shown


def progress_into(bar: tqdm[Any]) -> Progress:
    """Shows progress in a bar."""

    def progress(what: str, done: int, total: int) -> None:
        bar.set_description_str(what, refresh=False)
        bar.bar_format = None if total else "{desc} ({elapsed})"
        bar.total = total or None
        bar.n = min(done, total) if total else done
        bar.refresh()

    return progress


def print_result(result: ExportResult, *, called: str = "", echo: Callable[[str], None] = typer.echo) -> None:
    """Print what was done, for people; `called` takes the place of the set's own name."""
    verb = "Would write" if result.dry_run else "Wrote"
    dtype = "the weights' own dtype" if result.dtype == "NONE" else result.dtype
    echo(
        f"{result.model_type} {result.training_method}, step {result.step}, epoch {result.epoch}: "
        f"{result.format}, {dtype}{', rounded at random' if result.rounding == 'STOCHASTIC' else ''}, {result.how}."
    )
    if result.base_model:
        echo(f"Base model: {result.base_model}")
    for each in result.sets:
        about = "about " if result.dry_run else ""
        echo(f"{verb} {called or set_suffix(each.set)}: {each.path} ({about}{size_text(each.size_bytes)})")
        for file in each.files:
            if file != each.path and not file.is_relative_to(each.path):
                echo(f"  and {file}")
    if result.dry_run:
        echo(f"Free there: {size_text(result.free_bytes)}. Nothing was written.")
    else:
        tensors = sum(each.tensors for each in result.sets)
        echo(f"{tensors} tensors were read back and are what was to be written.")
    for note in result.notes:
        echo(f"Note: {note}")
