from modules.util import multi_gpu_util as multi


def init_model_parameters(model, parameters, train_device):
    """Give a model that is set up its optimizer and its average."""
    model.parameters = parameters
    multi.broadcast_parameters(parameters.parameters(), train_device)

    from modules.util import create

    model.optimizer = create.create_optimizer(parameters, model.optimizer_state_dict, model.train_config)
    model.optimizer_state_dict = None
    if multi.is_master():
        model.ema = create.create_ema(parameters.parameters(), model.ema_state_dict, model.train_config)
    else:
        model.ema = None
    model.ema_state_dict = None
    model.param_group_mapping = parameters.unique_name_mapping
