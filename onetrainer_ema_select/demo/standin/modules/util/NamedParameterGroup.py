"""The trained parameters, in groups that have names; the parameters themselves have none."""


class NamedParameterGroup:
    def __init__(self, unique_name, parameters, learning_rate, display_name=None):
        self.unique_name = unique_name
        self.display_name = display_name or unique_name
        self.parameters = list(parameters)
        self.learning_rate = learning_rate


class NamedParameterGroupCollection:
    def __init__(self):
        self._groups = []

    def add_group(self, group):
        self._groups.append(group)

    def parameters(self):
        return [parameter for group in self._groups for parameter in group.parameters]

    def parameters_for_optimizer(self, config):
        rates = [config.learning_rate if g.learning_rate is None else g.learning_rate for g in self._groups]
        return [
            {"name": group.display_name, "params": list(group.parameters), "lr": rate, "initial_lr": rate}
            for group, rate in zip(self._groups, rates, strict=True)
        ]

    @property
    def unique_name_mapping(self):
        return [group.unique_name for group in self._groups]
