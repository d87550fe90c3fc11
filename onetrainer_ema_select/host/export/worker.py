"""The process that has OneTrainer: ``python worker.py ORDER``, run by its Python.

Events go out on the standard output, one JSON line each. What OneTrainer prints goes to the standard error.
"""

# No `from __future__` and few names here: nothing may be imported before the path is right.
import os
import sys
import threading
import traceback
from pathlib import Path

if __name__ == "__main__":
    # As in `bootstrap`: the plugin's own modules must not hide anybody's top-level ones, the package must be found.
    package, folder = str(Path(__file__).absolute().parents[3]), str(Path(__file__).absolute().parent)
    sys.path[:] = [entry for entry in sys.path if not entry or str(Path(entry).absolute()) != folder]
    if package not in sys.path:
        sys.path.append(package)

from onetrainer_ema_select.errors import EmaSelectError
from onetrainer_ema_select.host.export.messages import Event, ExportOrder


def main() -> int:
    """Carry out one order. Returns the exit code."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def emit(event: Event) -> None:
        with lock:
            channel.write(event.model_dump_json() + "\n")
            channel.flush()

    order = ExportOrder.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        emit(Event(kind="progress", text="starting OneTrainer"))
        # OneTrainer finds its own files relative to its folder.
        os.chdir(order.onetrainer)
        sys.path.insert(0, str(order.onetrainer))
        # Before anything of OneTrainer: its savers import the function that this replaces.
        from onetrainer_ema_select.host.export.readback import ReadBack

        readback = ReadBack()
        readback.install()
        # What is wrong with the backup is said before OneTrainer's imports, which take seconds.
        from onetrainer_ema_select.host.export.mixed import open_ordered

        opened = open_ordered(order)
        if order.action != "names":
            from onetrainer_ema_select.host.export.selection import chosen_sets

            chosen_sets(opened, order.sets)
        from onetrainer_ema_select.host.export.perform import perform

        perform(order, opened, readback=readback, emit=emit)
    except EmaSelectError as error:
        traceback.print_exc()
        emit(Event(kind="error", text=str(error), error=type(error).__name__, from_host=bool(error.__cause__)))
        return 1
    except BaseException as error:  # noqa: BLE001 - the caller shows it
        traceback.print_exc()
        emit(Event(kind="error", text=" ".join(f"{type(error).__name__}: {error}".split())))
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Everything is on the disk. To take a model of many gigabytes apart first would only cost time.
    os._exit(code)
