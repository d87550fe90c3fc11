"""One run, in OneTrainer's order of calls."""

import json
import math
import shutil
import traceback
from pathlib import Path

import torch
from modules.trainer.BaseTrainer import BaseTrainer
from modules.util import multi_gpu_util as multi
from modules.util.config.SampleConfig import SampleConfig
from modules.util.enum.EMAMode import EMAMode
from modules.util.enum.ModelFormat import ModelFormat
from modules.util.enum.TimeUnit import TimeUnit
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.scalars import SummaryWriter
from modules.util.time_util import get_string_timestamp
from tqdm import tqdm


class GenericTrainer(BaseTrainer):
    def __init__(self, config, callbacks, commands):
        super().__init__(config, callbacks, commands)
        if multi.is_master():
            folder = f"{config.save_filename_prefix}{get_string_timestamp()}"
            self.tensorboard = SummaryWriter(str(Path(config.workspace_dir, "tensorboard", folder)))
        self.model = None
        self.one_step_trained = False

    def start(self):
        if multi.is_master():
            self.__save_config_to_workspace()
        self.model_loader = self.create_model_loader()
        self.model_setup = self.create_model_setup()

        names = self.config.model_names()
        if self.config.continue_last_backup:
            self.callbacks.on_update_status("searching for previous backups")
            backup = self.config.get_last_backup_path()
            if backup is None:
                print("No backup found, continuing without backup...")
            else:
                if self.config.training_method == TrainingMethod.LORA:
                    names.lora = backup
                elif self.config.training_method == TrainingMethod.EMBEDDING:
                    names.embedding.model_name = backup
                else:
                    names.base_model = backup
                print(f"Continuing training from backup '{backup}'...")

        self.callbacks.on_update_status("loading the model")
        self.model = self.model_loader.load(
            model_type=self.config.model_type,
            model_names=names,
            weight_dtypes=self.config.weight_dtypes(),
            quantization=None,
        )
        self.model.train_config = self.config

        self.callbacks.on_update_status("running model setup")
        self.model_setup.setup_optimizations(self.model, self.config)
        self.model_setup.setup_train_device(self.model, self.config)
        self.model_setup.setup_model(self.model, self.config)
        self.model.eval()

        self.data_loader = self.create_data_loader(self.model.train_progress)
        self.model_saver = self.create_model_saver()
        self.model_sampler = self.create_model_sampler(self.model)
        self.sample_queue = []
        self.parameters = self.model.parameters.parameters()
        if self.config.validation:
            self.validation_data_loader = self.create_data_loader(self.model.train_progress, is_validation=True)

    def train(self):
        progress = self.model.train_progress
        has_gradient = False
        for _ in tqdm(range(progress.epoch, self.config.epochs), desc="epoch", disable=not multi.is_master()):
            if self.commands.get_stop_command():
                return
            self.model_setup.setup_train_device(self.model, self.config)
            data_set = self.data_loader.get_data_set()
            data_set.start_next_epoch()
            length = data_set.approximate_length()

            steps = tqdm(
                self.data_loader.get_data_loader(),
                desc="step",
                total=length,
                initial=progress.epoch_step,
                leave=False,
                disable=not multi.is_master(),
            )
            for batch in steps:
                self.__look_what_is_due(progress)
                if not has_gradient:
                    self.__do_what_is_due(progress)
                self.callbacks.on_update_status("Training ...")

                data = self.model_setup.predict(self.model, batch, self.config, progress)
                loss = self.model_setup.calculate_loss(self.model, batch, data, self.config)
                loss = loss / self.config.gradient_accumulation_steps
                loss.backward()
                has_gradient = True
                if self.repeating_action_needed(
                    "update_step", self.config.gradient_accumulation_steps, TimeUnit.STEP, progress, False
                ):
                    self.__optimizer_step(progress)
                    has_gradient = False
                    steps.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
                    if math.isnan(loss.item()):
                        raise RuntimeError("Training loss became NaN.")

                if self.config.validation and multi.is_master():
                    self.__validate(progress)
                progress.next_step(self.config.batch_size)
                self.callbacks.on_update_train_progress(progress, length, self.config.epochs)
                if self.commands.get_stop_command():
                    return

            progress.next_epoch()
            self.callbacks.on_update_train_progress(progress, length, self.config.epochs)
            if self.commands.get_stop_command():
                return

    def end(self):
        if self.one_step_trained:
            self.model.evict()
            if self.config.backup_before_save and multi.is_master():
                self.__backup(self.model.train_progress)
            if multi.is_master():
                self.callbacks.on_update_status("Saving the final model")
                if self.model.ema:
                    self.model.ema.copy_ema_to(self.parameters, store_temp=False)
                path = Path(self.config.output_model_destination)
                if path.is_dir() and self.config.output_model_format.is_single_file():
                    extension = self.config.output_model_format.file_extension()
                    path = path / f"{self.config.save_filename_prefix}{get_string_timestamp()}{extension}"
                print(f"Saving {path}")
                self.model_saver.save(
                    model=self.model,
                    model_type=self.config.model_type,
                    output_model_format=self.config.output_model_format,
                    output_model_destination=str(path),
                    dtype=self.config.output_dtype.torch_dtype(),
                )
        if self.model is not None:
            self.model.evict()
        if multi.is_master():
            self.tensorboard.close()

    def __optimizer_step(self, progress):
        multi.reduce_grads_mean(self.parameters)
        if self.config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_grad_norm)
        self.model.optimizer.step()
        self.model.optimizer.zero_grad(set_to_none=True)
        self.model_setup.after_optimizer_step(self.model, self.config, progress)
        if self.model.ema:
            update_step = progress.global_step // self.config.gradient_accumulation_steps
            decay = self.model.ema.get_current_decay(update_step)
            self.tensorboard.add_scalar("ema_decay", decay, progress.global_step)
            self.model.ema.step(self.parameters, update_step)
        self.one_step_trained = True

    def __look_what_is_due(self, progress):
        config, commands = self.config, self.commands
        sample = self.single_action_elapsed(
            "sample_skip_first", config.sample_skip_first, config.sample_after_unit, progress
        ) and self.repeating_action_needed("sample", config.sample_after, config.sample_after_unit, progress)
        if (not commands.get_stop_command() and sample) or commands.get_and_reset_sample_default_command():
            self.sample_queue.append(lambda: self.__sample(progress))
        if self.repeating_action_needed("backup", config.backup_after, config.backup_after_unit, progress, False):
            commands.backup()
        if self.single_action_elapsed(
            "save_skip_first", config.save_skip_first, config.save_every_unit, progress
        ) and self.repeating_action_needed("save", config.save_every, config.save_every_unit, progress, False):
            commands.save()
        custom = commands.get_and_reset_sample_custom_commands()
        if custom:
            self.sample_queue.append(lambda: self.__sample(progress, custom))

    def __do_what_is_due(self, progress):
        for sample in self.sample_queue:
            sample()
        self.sample_queue = []
        backup = self.commands.get_and_reset_backup_command()
        save = self.commands.get_and_reset_save_command()
        if multi.is_master() and (backup or save):
            self.model.evict()
            if backup:
                self.__backup(progress)
            if save:
                self.__save(progress)
            self.model_setup.setup_train_device(self.model, self.config)

    def __backup(self, progress):
        self.callbacks.on_update_status("Creating backup")
        path = Path(
            self.config.workspace_dir, "backup", f"{get_string_timestamp()}-backup-{progress.filename_string()}"
        )
        try:
            tqdm.write(f"Creating Backup {path}")
            self.model_saver.save(self.model, self.config.model_type, ModelFormat.INTERNAL, str(path), None)
            self.__save_backup_config(path)
        except Exception:  # noqa: BLE001 - the run goes on
            traceback.print_exc()
            tqdm.write("Could not save backup. Check your disk space!")
            shutil.rmtree(path, ignore_errors=True)
        finally:
            if self.config.rolling_backup:
                self.__prune_backups(self.config.rolling_backup_count)
        self.model_setup.setup_train_device(self.model, self.config)

    def __save(self, progress):
        self.callbacks.on_update_status("Saving")
        config = self.config
        name = f"{config.save_filename_prefix}{get_string_timestamp()}-save-{progress.filename_string()}"
        path = Path(config.workspace_dir, "save", name + config.output_model_format.file_extension())
        tqdm.write(f"Saving {path}")
        try:
            if self.model.ema:
                self.model.ema.copy_ema_to(self.parameters, store_temp=True)
            self.model_saver.save(
                model=self.model,
                model_type=config.model_type,
                output_model_format=config.output_model_format,
                output_model_destination=str(path),
                dtype=config.output_dtype.torch_dtype(),
            )
        except Exception:  # noqa: BLE001 - the run goes on, and what was written of the file stays
            traceback.print_exc()
            tqdm.write("Could not save model. Check your disk space!")
        finally:
            if self.model.ema:
                self.model.ema.copy_temp_to(self.parameters)

    def __sample(self, progress, custom=None):
        self.callbacks.on_update_status("Sampling ...")
        samples = custom or self.config.samples
        if samples is None:
            try:
                entries = json.loads(Path(self.config.sample_definition_file_name).read_text(encoding="utf-8"))
                samples = [SampleConfig.default_values(self.config.model_type).from_dict(e) for e in entries]
            except Exception:  # noqa: BLE001 - the run goes on without samples
                traceback.print_exc()
                samples = []
        if self.model.ema:
            self.model.ema.copy_ema_to(self.parameters, store_temp=True)
        self.__sample_loop(progress, samples, "custom" if custom else None, "")
        if self.model.ema:
            # not in a `finally`, as in the host: an interrupt above leaves the average in the model
            self.model.ema.copy_temp_to(self.parameters)
        if self.config.ema != EMAMode.OFF and not custom and self.config.non_ema_sampling:
            self.__sample_loop(progress, samples, None, " - no-ema")
        self.model_setup.setup_train_device(self.model, self.config)

    def __sample_loop(self, progress, samples, folder, postfix):
        for number, sample in enumerate(samples):
            if not sample.enabled:
                continue
            try:
                self.model.eval()
                name = f"{get_string_timestamp()}-training-sample-{progress.filename_string()}"
                place = Path(self.config.workspace_dir, "samples", folder or f"{number} - {sample.prompt}{postfix}")
                self.model_sampler.sample(
                    sample_config=sample,
                    destination=str(place / name),
                    image_format=self.config.sample_image_format,
                    video_format=None,
                    audio_format=None,
                    on_sample=self.callbacks.on_sample_custom if folder else self.callbacks.on_sample_default,
                    on_update_progress=lambda _, __: None,
                )
            except Exception:  # noqa: BLE001 - the run goes on without samples
                traceback.print_exc()
                tqdm.write("Error during sampling, proceeding without sampling")

    def __validate(self, train_progress):
        config = self.config
        if not self.repeating_action_needed(
            "validate", config.validate_after, config.validate_after_unit, train_progress
        ):
            return
        data_set = self.validation_data_loader.get_data_set()
        data_set.start_next_epoch()
        if not data_set.approximate_length():
            return
        self.callbacks.on_update_status("Calculating validation loss")
        self.model_setup.setup_train_device(self.model, config)
        losses = {}
        for batch in self.validation_data_loader.get_data_loader():
            with torch.no_grad():
                data = self.model_setup.predict(self.model, batch, config, train_progress, deterministic=True)
                loss = self.model_setup.calculate_loss(self.model, batch, data, config)
            label = batch["concept_name"][0] or Path(batch["concept_path"][0]).name
            losses.setdefault(label, []).append(loss.item())
        for label, own in losses.items():
            self.tensorboard.add_scalar(
                f"loss/validation_step/{label}", sum(own) / len(own), train_progress.global_step
            )
        if len(losses) > 1:
            total = sum(sum(own) for own in losses.values()) / sum(len(own) for own in losses.values())
            self.tensorboard.add_scalar("loss/validation_step/total_average", total, train_progress.global_step)

    def __save_config_to_workspace(self):
        folder = Path(self.config.workspace_dir, "config")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.config.save_filename_prefix}{get_string_timestamp()}.json"
        path.write_text(json.dumps(self.config.to_pack_dict(secrets=False), indent=1), encoding="utf-8")

    def __save_backup_config(self, backup):
        folder = backup / "onetrainer_config"
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(self.config.to_settings_dict(secrets=False), indent=1)
        (folder / "args.json").write_text(settings, encoding="utf-8")

    def __prune_backups(self, keep):
        folder = Path(self.config.workspace_dir, "backup")
        folders = sorted((path for path in folder.iterdir() if path.is_dir()), reverse=True) if folder.is_dir() else []
        for path in folders[keep:]:
            shutil.rmtree(path, ignore_errors=True)
