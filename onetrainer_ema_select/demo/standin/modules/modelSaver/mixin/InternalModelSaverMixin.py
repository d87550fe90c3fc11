import json
from pathlib import Path

import torch


class InternalModelSaverMixin:
    def _save_internal_data(self, model, destination):
        """What a backup holds besides the model; the progress comes last."""
        folder = Path(destination)
        (folder / "optimizer").mkdir(parents=True, exist_ok=True)
        state = model.optimizer.state_dict()
        state["param_group_mapping"] = model.param_group_mapping
        torch.save(state, folder / "optimizer" / "optimizer.pt")
        if model.ema:
            (folder / "ema").mkdir(exist_ok=True)
            torch.save(model.ema.state_dict(), folder / "ema" / "ema.pt")
        (folder / "meta.json").write_text(json.dumps({"train_progress": vars(model.train_progress)}))
