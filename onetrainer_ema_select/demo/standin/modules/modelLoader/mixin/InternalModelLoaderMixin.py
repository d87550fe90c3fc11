import json
from pathlib import Path

import torch
from modules.util.TrainProgress import TrainProgress


class InternalModelLoaderMixin:
    def _load_internal_data(self, model, model_name):
        """Read from a backup what is not the model itself; anything else has no meta.json."""
        folder = Path(model_name)
        if not model_name or not (folder / "meta.json").is_file():
            return
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        model.train_progress = TrainProgress(**meta["train_progress"])
        if (folder / "optimizer" / "optimizer.pt").is_file():
            model.optimizer_state_dict = torch.load(folder / "optimizer" / "optimizer.pt", weights_only=True)
        if (folder / "ema" / "ema.pt").is_file():
            model.ema_state_dict = torch.load(folder / "ema" / "ema.pt", weights_only=True)
