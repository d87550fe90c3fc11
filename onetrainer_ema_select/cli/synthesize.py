"""`synthesize`: a model of any EMA length, out of the snapshots that a run has left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onetrainer_ema_select.cli.common import JsonOption, OneTrainerOption, echo_json
from onetrainer_ema_select.cli.export import (
    BaseModelOption,
    ConfigOption,
    ConfigValueOption,
    DryRunOption,
    DtypeOption,
    FormatOption,
    OutputOption,
    OverwriteOption,
    RoundingOption,
    print_result,
    progress_bar,
    usage_errors,
)
from onetrainer_ema_select.origin import PACKAGE
from onetrainer_ema_select.sigma_rel import parse_sigma_rels

if TYPE_CHECKING:
    from onetrainer_ema_select.host.export.synthesize import Synthesized

EXAMPLE = f"Example: {PACKAGE} synthesize workspace/run --sigma-rel 0.08 --output models/portrait-0.08.safetensors"


def synthesize(
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", help="A run's workspace, as workspace_dir in its config.")
    ],
    sigma_rel: Annotated[
        str, typer.Option("--sigma-rel", metavar="S", help="The length: 0.05 short, 0.10 medium, 0.20 long.")
    ],
    output: OutputOption,
    *,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="NAME",
            show_default="the newest snapshot",
            help="The moment: a step, or the name of a snapshot, backup or milestone.",
        ),
    ] = "",
    backup: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", show_default="the nearest", help="The backup that the rest of the model is taken from."
        ),
    ] = None,
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
    """Make a model whose EMA has any length you like, after training (post-hoc EMA).

    The run must have kept post-hoc tracks (ema_select.post_hoc_sigma_rels). Says how near the snapshots come to the
    length that was asked for. Written and read back as `export` does it, in every format.
    """
    from onetrainer_ema_select.host.export.synthesize import synthesize as make

    with progress_bar() as progress, usage_errors():
        made = make(
            workspace,
            output,
            sigma_rel=length(sigma_rel),
            at=at,
            backup=backup,
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
        echo_json(as_report(made))
        return
    typer.echo(f"Post-hoc EMA of {made.mixture.sentence}.")
    if made.mixture.fit.warning:
        typer.echo(f"WARNING: {made.mixture.fit.warning}")
    print_result(made.result, called=f"post-hoc EMA of sigma_rel {made.mixture.sigma_rel:g}")


def length(text: str) -> float:
    """The length that was typed.

    Raises:
        typer.BadParameter: It is none.
    """
    try:
        found = parse_sigma_rels(text)
    except ValueError as error:
        raise typer.BadParameter(f"--sigma-rel: {error}. Type for example --sigma-rel 0.10") from error
    if len(found) != 1:
        raise typer.BadParameter(
            f'--sigma-rel: one length is needed, "{text}" was found. Type for example --sigma-rel 0.10'
        )
    return found[0]


def as_report(made: Synthesized) -> dict[str, Any]:
    """What was done, for programs; see docs/json.md."""
    mixture = made.mixture
    report = made.result.model_dump(mode="json")
    for each in report["sets"]:
        each["set"] = "POST_HOC"
    fit = mixture.fit
    return {
        "schema": 1,
        "sigma_rel": mixture.sigma_rel,
        "at": mixture.end.path,
        "fit": {
            "error": fit.error,
            "reachable": fit.reachable,
            "warning": fit.warning,
            "requested": {"mean_age": fit.requested.mean_age, "width": fit.requested.width},
            "achieved": {"mean_age": fit.achieved.mean_age, "width": fit.achieved.width},
        },
        "snapshots": [{"path": one.path, "step": one.step} for one in mixture.line],
        "sources": [
            {
                "file": source.file,
                "step": source.step,
                "sigma_rel": source.sigma_rel,
                "coefficient": source.coefficient,
            }
            for source in mixture.sources
        ],
        **report,
    }
