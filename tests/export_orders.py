"""Carries out many export orders in one process of OneTrainer's python; the imports are paid once.

``python export_orders.py CHECKOUT``: each line on the standard input names a file, a JSON list of orders. Beside it
``results.json`` becomes a list of results, each a result or an error, and a line goes out. What runs is what the
plugin's own worker runs; the tests of the command line run that.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(sys.argv[1])


def main(replies: IO[str]) -> None:
    """Do one list a line until there are no more; what goes wrong is a result too."""
    from onetrainer_ema_select.host.export.readback import ReadBack

    readback = ReadBack()
    readback.install()

    from modules.util.config.TrainConfig import TrainConfig

    from onetrainer_ema_select.host.export.messages import Event, ExportOrder
    from onetrainer_ema_select.host.export.mixed import open_ordered
    from onetrainer_ema_select.host.export.perform import perform

    defaults = TrainConfig.default_values

    def carry_out(raw: Any) -> dict[str, Any]:
        events: list[Event] = []
        TrainConfig.default_values = staticmethod(defaults)  # each order has a process of its own otherwise
        try:
            order = ExportOrder.model_validate(raw)
            perform(order, open_ordered(order), readback=readback, emit=events.append)
            if order.action == "names":
                return {"names": next(event.names for event in events if event.kind == "names"), "error": None}
            result = next(event.result for event in events if event.result is not None)
        except Exception as error:
            traceback.print_exc()
            return {"result": None, "error": f"{type(error).__name__}: {error}"}
        return {"result": result.model_dump(mode="json"), "error": None}

    for line in sys.stdin:
        file = Path(line.strip())
        found = [carry_out(raw) for raw in json.loads(file.read_text(encoding="utf-8"))]
        file.with_name("results.json").write_text(json.dumps(found), encoding="utf-8")
        print("done", file=replies, flush=True)


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    sys.path.insert(0, str(CHECKOUT))
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies_out:
        os.dup2(2, 1)  # what OneTrainer prints, also while it is imported, goes to the standard error
        main(replies_out)
