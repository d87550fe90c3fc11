"""The host's own average, with what is wrong in it: its dtype is the weights', and a save loses them."""

import torch


class EMAModuleWrapper:
    def __init__(self, parameters, decay=0.9999, update_step_interval=1, device=None):
        self.ema_parameters = [parameter.detach().clone().to(device) for parameter in parameters]
        self.temp_stored_parameters = None
        self.decay = decay
        self.update_step_interval = update_step_interval
        self.device = device

    def get_current_decay(self, optimization_step):
        return min((1 + optimization_step) / (10 + optimization_step), self.decay)

    @torch.no_grad()
    def step(self, parameters, optimization_step):
        if (optimization_step + 1) % self.update_step_interval != 0:
            return
        share = 1 - self.get_current_decay(optimization_step)
        for average, parameter in zip(self.ema_parameters, parameters, strict=True):
            if parameter.requires_grad:
                average.add_(share * (parameter.to(average.device) - average))

    def to(self, device=None, dtype=None):
        self.device = device
        self.ema_parameters = [
            average.to(device, dtype if average.is_floating_point() else None) for average in self.ema_parameters
        ]

    def copy_ema_to(self, parameters, store_temp=True):
        parameters = list(parameters)
        if store_temp:
            # On the CPU this is no copy: the average is written over it right below, as in the host.
            self.temp_stored_parameters = [parameter.detach().cpu() for parameter in parameters]
        for average, parameter in zip(self.ema_parameters, parameters, strict=True):
            parameter.data.copy_(average)

    def copy_temp_to(self, parameters):
        for stored, parameter in zip(self.temp_stored_parameters, parameters, strict=True):
            parameter.data.copy_(stored)
        self.temp_stored_parameters = None

    def load_state_dict(self, state_dict):
        self.decay = self.decay or state_dict.get("decay", self.decay)
        self.ema_parameters = state_dict["ema_parameters"]
        self.to(self.device)

    def state_dict(self):
        return {"decay": self.decay, "ema_parameters": self.ema_parameters}
