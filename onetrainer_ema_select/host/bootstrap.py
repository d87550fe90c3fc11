"""One run of a OneTrainer script with the plugin, nothing enabled permanently.

Run in OneTrainer's folder as `python bootstrap.py SCRIPT ARGS...`. The script is executed in the namespace of
this file, not in one of its own: a process that it spawns first imports its parent's main module again, and
that must be this one, so that the plugin is there on every GPU.
"""

# No `from __future__` and few names here: the script finds them as its own.
import os
import sys
from pathlib import Path

NAME = "onetrainer_ema_select.host.bootstrap"
VARIABLE = "ONETRAINER_EMA_SELECT_SCRIPT"

if __name__ == "__main__":
    # Python puts the folder of the file it runs first on the path. There the plugin's own `setup` or
    # `parameters` would hide anybody's top-level module of that name; the package is what must be found.
    package, folder = str(Path(__file__).absolute().parents[2]), str(Path(__file__).absolute().parent)
    sys.path[:] = [entry for entry in sys.path if not entry or str(Path(entry).absolute()) != folder]
    if package not in sys.path:
        sys.path.append(package)

from importlib.machinery import ModuleSpec
from importlib.util import find_spec

from onetrainer_ema_select.errors import EmaSelectError


class ArmBeforeCreate:
    """Arms the plugin when OneTrainer's `modules.util.create` is about to be imported, once.

    The drop-in of `enable` is imported in the same moment: before any trainer exists, and after the script
    has prepared its own environment (on Windows, ZLUDA must be loaded before torch is).
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find nothing; arm the plugin on the way. Called by Python for each module it imports."""
        if name == "modules.util.create":
            sys.meta_path.remove(self)
            from onetrainer_ema_select.host import arm

            arm()
        return None


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.stderr.write(f"Usage: python {Path(__file__).name} SCRIPT ARGS...\n")
        sys.exit(2)
    # from here on as if Python had been started with the script
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).absolute().parent))
    # for spawned processes, which get the path and the other arguments but not this one
    os.environ[VARIABLE] = str(Path(sys.argv[0]).absolute())
    # spawned processes import the main module by this name rather than by `__file__`, which is the script's
    if (spec := find_spec(NAME)) is not None:
        __spec__ = spec

if __name__ in ("__main__", "__mp_main__"):
    sys.meta_path.insert(0, ArmBeforeCreate())
    __file__ = os.environ[VARIABLE]
    try:
        exec(compile(Path(__file__).read_bytes(), __file__, "exec", dont_inherit=True))
    except EmaSelectError as error:
        if __name__ != "__main__":
            raise
        # says itself what is wrong and what to do; where in the code it was found helps nobody
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
