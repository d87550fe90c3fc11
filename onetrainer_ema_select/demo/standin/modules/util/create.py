"""Makes the objects of a run. Its import imports every implementation, and what else lies in their folders."""

import torch
from modules.dataLoader.BaseDataLoader import BaseDataLoader
from modules.modelLoader.BaseModelLoader import BaseModelLoader
from modules.modelSampler.BaseModelSampler import BaseModelSampler
from modules.modelSaver.BaseModelSaver import BaseModelSaver
from modules.modelSetup.BaseModelSetup import BaseModelSetup
from modules.module.EMAModule import EMAModuleWrapper
from modules.util import factory
from modules.util.enum.EMAMode import EMAMode
from modules.util.enum.Optimizer import Optimizer
from modules.util.enum.TrainingMethod import TrainingMethod

factory.import_dir("modules/modelSampler", "modules.modelSampler")
factory.import_dir("modules/modelLoader", "modules.modelLoader")
factory.import_dir("modules/modelSaver", "modules.modelSaver")
factory.import_dir("modules/modelSetup", "modules.modelSetup")
factory.import_dir("modules/dataLoader", "modules.dataLoader")


def create_model_loader(model_type, training_method=TrainingMethod.FINE_TUNE):
    cls = factory.get(BaseModelLoader, model_type, training_method)
    return cls() if cls is not None else None


def create_model_saver(model_type, training_method=TrainingMethod.FINE_TUNE):
    cls = factory.get(BaseModelSaver, model_type, training_method)
    return cls() if cls is not None else None


def create_model_setup(
    model_type, train_device, temp_device, training_method=TrainingMethod.FINE_TUNE, debug_mode=False
):
    cls = factory.get(BaseModelSetup, model_type, training_method)
    return cls(train_device, temp_device, debug_mode) if cls is not None else None


def create_model_sampler(train_device, temp_device, model, model_type, training_method=TrainingMethod.FINE_TUNE):
    del training_method
    cls = factory.get(BaseModelSampler, model_type)
    return cls(train_device, temp_device, model, model_type) if cls is not None else None


def create_data_loader(config, train_progress, is_validation=False):
    cls = factory.get(BaseDataLoader, config.model_type)
    return cls(config, train_progress, is_validation) if cls is not None else None


def create_optimizer(parameter_group_collection, state_dict, config):
    settings = config.optimizer
    if settings.optimizer is None:
        return None
    groups = parameter_group_collection.parameters_for_optimizer(config)
    betas = (settings.beta1, settings.beta2)
    match settings.optimizer:
        case Optimizer.SGD:
            optimizer = torch.optim.SGD(groups, momentum=settings.momentum or 0, weight_decay=settings.weight_decay)
        case Optimizer.ADAM:
            optimizer = torch.optim.Adam(groups, betas=betas, eps=settings.eps)
        case Optimizer.ADAMW:
            optimizer = torch.optim.AdamW(groups, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay)
        case _:
            raise NotImplementedError(f"the stand-in has no optimizer {settings.optimizer}")
    if state_dict is not None and state_dict["param_group_mapping"] == parameter_group_collection.unique_name_mapping:
        fresh = [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups]
        optimizer.load_state_dict({"state": state_dict["state"], "param_groups": state_dict["param_groups"]})
        # the configuration's learning rates count, not those of the backup
        for group, (lr, initial_lr) in zip(optimizer.param_groups, fresh, strict=True):
            group["lr"], group["initial_lr"] = lr, initial_lr
    return optimizer


def create_ema(parameters, state_dict, config):
    if config.ema == EMAMode.OFF:
        return None
    ema = EMAModuleWrapper(
        parameters=parameters,
        decay=config.ema_decay,
        update_step_interval=config.ema_update_step_interval,
        device=torch.device(config.train_device if config.ema == EMAMode.GPU else "cpu"),
    )
    if state_dict is not None:
        ema.load_state_dict(state_dict)
    return ema


def create_trainer(config, callbacks, commands, reattach=False):
    del reattach
    from modules.trainer.GenericTrainer import GenericTrainer

    return GenericTrainer(config, callbacks, commands)
