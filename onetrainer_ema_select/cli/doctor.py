"""`doctor`: does the plugin fit this OneTrainer?"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import typer

from onetrainer_ema_select import __version__
from onetrainer_ema_select.cli.common import (
    DirectoryArgument,
    JsonOption,
    OneTrainerOption,
    echo_json,
    named_onetrainer,
)
from onetrainer_ema_select.host import dropin
from onetrainer_ema_select.host.locate import host_commit, host_python, python_without_package
from onetrainer_ema_select.host.seams import (
    CLOUD_SEAMS,
    COMPONENT_SEAMS,
    EXPORT_SEAMS,
    VALIDATION_SEAMS,
    WINDOW_SEAMS,
    SeamResult,
    check_source,
)
from onetrainer_ema_select.origin import PACKAGE, install_source
from onetrainer_ema_select.requirements import installed_version, missing_packages, required

EXAMPLE = f"Example: {PACKAGE} doctor ~/OneTrainer"


def doctor(
    directory: DirectoryArgument = None, onetrainer: OneTrainerOption = None, as_json: JsonOption = False
) -> None:
    """Check each place where the plugin meets OneTrainer, and the environment; say what to do.

    Reads OneTrainer's source and runs none of it. Exit code 1 where something does not fit.
    """
    folder = named_onetrainer(directory, onetrainer)
    seams = check_source(folder)
    export_seams = check_source(folder, EXPORT_SEAMS)
    validation_seams = check_source(folder, VALIDATION_SEAMS)
    # Where there is none, as in the demo's stand-in, there is nothing to fit.
    window_seams = check_source(
        folder, (*WINDOW_SEAMS, *COMPONENT_SEAMS) if (folder / "modules" / "ui").is_dir() else ()
    )
    cloud_seams = check_source(folder, CLOUD_SEAMS if (folder / "modules" / "cloud").is_dir() else ())
    packages = {name: installed_version(name) for name in required()}
    state = dropin_state(folder)
    actions = advice(
        folder,
        seams=seams,
        export_seams=export_seams,
        validation_seams=validation_seams,
        window_seams=window_seams,
        cloud_seams=cloud_seams,
        packages=packages,
        state=state,
    )
    groups = (seams, export_seams, validation_seams, window_seams, cloud_seams)
    ok = all(seam.ok for group in groups for seam in group) and not missing_packages()
    if as_json:
        echo_json(
            {
                "ok": ok,
                "onetrainer": folder,
                "onetrainer_commit": host_commit(folder),
                "onetrainer_python": host_python(folder),
                "enabled": state,
                "plugin": __version__,
                "python": platform.python_version(),
                "python_executable": sys.executable,
                "packages": packages,
                "seams": [seam_report(seam) for seam in seams],
                "export_seams": [seam_report(seam) for seam in export_seams],
                "validation_seams": [seam_report(seam) for seam in validation_seams],
                "window_seams": [seam_report(seam) for seam in window_seams],
                "cloud_seams": [seam_report(seam) for seam in cloud_seams],
                "advice": actions,
            }
        )
    else:
        typer.echo(f"OneTrainer   {folder}")
        typer.echo(f"commit       {host_commit(folder) or 'unknown (not a git checkout)'}")
        typer.echo(f"plugin       {PACKAGE} {__version__}, {ENABLED_TEXT[state]}")
        typer.echo(f"Python       {platform.python_version()}, {sys.executable}")
        listed = ", ".join(f"{name} {version or 'MISSING'}" for name, version in packages.items())
        typer.echo(f"packages     {listed}")
        typer.echo()
        for seam in seams:
            typer.echo(f"{'ok  ' if seam.ok else 'NOT '} {seam.sentence}")
        typer.echo()
        fitting = sum(seam.ok for seam in seams)
        typer.echo(f"{fitting} of {len(seams)} seams are as expected.")
        for name, table in (
            ("export", export_seams),
            ("validation", validation_seams),
            ("the window", window_seams),
            ("cloud runs", cloud_seams),
        ):
            for seam in table:
                if not seam.ok:
                    typer.echo(f"NOT  for {name}: {seam.sentence}")
            fitting = sum(seam.ok for seam in table)
            if table:
                typer.echo(f"{fitting} of {len(table)} seams of {name} are as expected.")
        for line in actions:
            typer.echo(line)
    raise typer.Exit(0 if ok else 1)


def seam_report(seam: SeamResult) -> dict[str, object]:
    """One seam for other programs."""
    return {"seam": seam.seam.label, "ok": seam.ok, "found": seam.found, "sentence": seam.sentence}


ENABLED_TEXT = {
    "current": "enabled in this OneTrainer",
    "outdated": "enabled in this OneTrainer by another version",
    "absent": "not enabled in this OneTrainer",
    "foreign": "not enabled: a file of somebody else has its name",
}


def dropin_state(folder: Path) -> str:
    """`current`, `outdated` (another version's), `absent`, or `foreign` (not ours)."""
    if dropin.is_current(folder):
        return "current"
    if dropin.is_enabled(folder):
        return "outdated"
    return "foreign" if dropin.dropin_path(folder).exists() else "absent"


def advice(
    folder: Path,
    *,
    seams: tuple[SeamResult, ...],
    export_seams: tuple[SeamResult, ...],
    validation_seams: tuple[SeamResult, ...],
    window_seams: tuple[SeamResult, ...],
    cloud_seams: tuple[SeamResult, ...],
    packages: dict[str, str | None],
    state: str,
) -> list[str]:
    """What to do, one sentence each; the last one is about using the plugin where nothing is wrong."""
    actions = []
    if not all(seam.ok for seam in seams):
        actions.append(
            "This OneTrainer is not one that the plugin knows, so it refuses to run with it. "
            f"Get a newer version of the plugin and install it: pip install --upgrade {install_source()}"
        )
    else:
        if not all(seam.ok for seam in export_seams):
            actions.append(
                "The plugin can train with this OneTrainer, but not export from its backups. Get a newer version of "
                f"the plugin and install it: pip install --upgrade {install_source()}"
            )
        if not all(seam.ok for seam in validation_seams):
            actions.append(
                "The plugin can train with this OneTrainer, but not judge both sets by its validation. Get a newer "
                f"version of the plugin and install it: pip install --upgrade {install_source()}"
            )
        if not all(seam.ok for seam in window_seams):
            actions.append(
                "The plugin works with this OneTrainer, but cannot show its settings in the window: set them in the "
                f"config file, or get a newer version of the plugin: pip install --upgrade {install_source()}"
            )
    if not all(seam.ok for seam in cloud_seams):
        actions.append(
            "The plugin does not know this OneTrainer's cloud training: cloud runs with it are refused on the machine "
            f"that starts them. Get a newer version of the plugin: pip install --upgrade {install_source()}"
        )
    if old := [each for each in missing_packages(packages.get) if packages[each.partition(">=")[0]]]:
        actions.append(f"Too old for the plugin: {', '.join(old)}. Run OneTrainer's own update script.")
    if missing := [name for name, version in packages.items() if version is None]:
        actions.append(f"Install what is missing: pip install {' '.join(missing)}")
    if python := python_without_package(folder):
        actions.append(
            "The plugin is not installed in OneTrainer's own Python; the one above is another. "
            f'Install it: "{python}" -m pip install {install_source()}'
        )
    if state == "outdated":
        actions.append(f'Renew the file in OneTrainer: {PACKAGE} enable "{folder}"')
    if state == "foreign":
        actions.append(f"Move {dropin.dropin_path(folder)} away: it is not the plugin's.")
    if not actions and state == "absent":
        actions.append(
            f'Nothing to mend. To start the plugin with OneTrainer: {PACKAGE} enable "{folder}"; '
            f"for one run only: {PACKAGE} train --config-path FILE"
        )
    if not actions:
        actions.append("Nothing to mend. A run uses the plugin when its config says ema_select.enabled=true.")
    return actions
