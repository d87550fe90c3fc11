"""Carries out many export orders in one process of OneTrainer's python; the imports are paid once.

``python exports.py CHECKOUT ORDERS RESULTS``: ORDERS is a JSON list of orders, RESULTS becomes a list of results, each
a result or an error. What runs is what the plugin's own worker runs; the tests of the command line run that.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

CHECKOUT, ORDERS, RESULTS = map(Path, sys.argv[1:])


def main() -> None:
    """Do them all; what goes wrong is a result too."""
    from onetrainer_ema_select.host.export.readback import ReadBack

    readback = ReadBack()
    readback.install()

    from modules.util.config.TrainConfig import TrainConfig

    from onetrainer_ema_select.backups import open_backup
    from onetrainer_ema_select.host.export.messages import Event, ExportOrder
    from onetrainer_ema_select.host.export.perform import perform

    defaults = TrainConfig.default_values
    found = []
    for raw in json.loads(ORDERS.read_text(encoding="utf-8")):
        events: list[Event] = []
        TrainConfig.default_values = staticmethod(defaults)  # each order has a process of its own otherwise
        try:
            order = ExportOrder.model_validate(raw)
            perform(order, open_backup(order.backup), readback=readback, emit=events.append)
            result = next(event.result for event in events if event.result is not None)
            found.append({"result": result.model_dump(mode="json"), "error": None})
        except Exception as error:
            traceback.print_exc()
            found.append({"result": None, "error": f"{type(error).__name__}: {error}"})
    RESULTS.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    sys.path.insert(0, str(CHECKOUT))
    main()
