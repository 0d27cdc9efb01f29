"""``python -m tttlrm.training stage=NAME output=FOLDER [key=value ...]``: train a model, or go on training it.

Every key of ``conf/`` can be overridden. The same command after an interruption goes on from the last checkpoint.
With ``torchrun`` it uses several processes.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any, cast

import torch.distributed as dist


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 complete, 1 training failed, 2 wrong input, 3 stopped early (the same command goes on)."""
    from tttlrm.errors import UserError
    from tttlrm.training.errors import TrainingError
    from tttlrm.training.groups import join_processes
    from tttlrm.training.trainer import Trainer

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        settings = compose(arguments)
        processes, device = join_processes(settings.compute.sp_size, settings.compute.device)
        command = " ".join([processes.launcher, "-m tttlrm.training", *map(shlex.quote, arguments)])
        complete = Trainer(settings, processes, device, command).run()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return 0 if complete else 3


def compose(overrides: list[str]) -> Any:
    """The settings that Hydra composes from ``conf/`` and overrides."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from tttlrm.errors import UserError
    from tttlrm.training.settings import TrainingSettings

    try:
        with initialize_config_module("tttlrm.training.conf", version_base="1.3"):
            config = compose("config", overrides)
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"settings: {' '.join(str(error).split())}") from error
    return TrainingSettings.from_dict(values)


if __name__ == "__main__":
    sys.exit(main())
