"""A trained network in the form of the Hugging Face Hub."""

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cifar_lightning.checkpoints.io import ModelInfo, check_finite
from cifar_lightning.checkpoints.pretrained import Pretrained
from cifar_lightning.checkpoints.trusted import check_interpolations, check_targets
from cifar_lightning.config.paths import without_paths
from cifar_lightning.errors import UserError
from cifar_lightning.hub.card import Training, make_card, read_training
from cifar_lightning.run import make_network, rebuild

WEIGHTS, CONFIG = constants.SAFETENSORS_SINGLE_FILE, constants.CONFIG_NAME
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
LONGEST = 200  # characters of another library's message


class HubModel(Pretrained, ModelHubMixin):
    """A trained network that is saved to a folder or the Hub, and loaded from there.

    A folder, and a repository on the Hub, has the weights in `model.safetensors`, the arguments
    below in `config.json`, and a model card in `README.md`. Loading runs no code of theirs: the
    network's class has to be one that a file in conf/ names as a model.

    Args:
        info: the model's description.
        training: what the card says of its training.
    """

    def __init__(self, info: ModelInfo, training: Training) -> None:
        super().__init__(make_network(info.network), info.classes, info.mean, info.std)
        self.info = info
        self.how_trained = training  # not `training`, which is nn.Module's mode

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, dataset: str | None = None) -> Self:
        """Take the network of a checkpoint, with its run's results.

        Args:
            checkpoint: path of the file. The card has the results if it is in the folder of its
                run, and is the one that the run has tested.
            dataset: what the card calls the data; by default what `data=` of the run says.

        Raises:
            UserError: if it cannot be rebuilt.
        """
        classifier, info = rebuild(checkpoint)
        # What is published names no path of this machine.
        info = dataclasses.replace(info, network=without_paths(info.network))
        training = read_training(Path(checkpoint), classifier.network, info, dataset)
        model = cls(info=info, training=training)
        model.network.load_state_dict(classifier.network.state_dict())
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Save the weights, the configuration and the card.

        Args:
            save_directory: a new or empty folder.
            **options: of `ModelHubMixin.save_pretrained`.

        Raises:
            UserError: if there are files in the folder, or it is a file.
        """
        folder = Path(save_directory)
        # The mixin would keep a README.md, which may be of another network.
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is not an empty folder. Name a new one.")
        return super().save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save to a repository on the Hub, which is made if it is not there.

        Args:
            repo_id: as OWNER/NAME.
            **options: of `ModelHubMixin.push_to_hub`, such as `private=True`.

        Returns:
            The address of the commit.

        Raises:
            UserError: if there is no token that may write there, or the Hub does not answer.
        """
        if not REPOSITORY.fullmatch(repo_id):  # an owner too: the card says how to load it
            raise UserError(f"{repo_id!r} is not the name of a repository. Name it as OWNER/NAME.")
        options["model_card_kwargs"] = {"repo_id": repo_id}
        with _hub_errors(f"{repo_id} was not pushed to {constants.ENDPOINT}"):
            return super().push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # without the further arguments of the mixin's
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Self:
        """Load a network from a folder or the Hub, in evaluation mode, on the CPU.

        Args:
            pretrained_model_name_or_path: a folder, else OWNER/NAME.
            revision: a branch, tag or commit of the repository on the Hub.
            token: that may read the repository; by default that of `hf auth login`.
            cache_dir: of downloads; by default that of huggingface_hub.
            force_download: whether to download what is in the cache.
            local_files_only: whether to read the cache alone.

        Raises:
            UserError: if there is neither, its network is not one of conf/, its files are damaged
                or do not fit each other, or the Hub does not answer.
        """
        name = str(pretrained_model_name_or_path)
        is_folder = Path(name).is_dir()
        if not is_folder and not REPOSITORY.fullmatch(name):
            raise UserError(
                f"{name!r} is neither a folder nor the name of a repository, OWNER/NAME."
            )

        def find(file: str) -> Path:
            if is_folder:
                return Path(name, file)
            with _hub_errors(f"{name}/{file} was not loaded from {constants.ENDPOINT}"):
                return Path(
                    hf_hub_download(
                        name,
                        file,
                        revision=revision,
                        token=token,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                    )
                )

        config = Path(name, CONFIG)
        with _config_errors(config):
            content = json.loads(find(CONFIG).read_text())
            info = TypeAdapter(ModelInfo).validate_python(content["info"])
            training = TypeAdapter(Training).validate_python(content["training"])
            check_targets(config, {"model": info.network})
            check_interpolations(config, info.network, resolved=True)
            model = cls(info=info, training=training)
        file = find(WEIGHTS)
        try:
            weights = load_file(file)
            model.network.load_state_dict(weights)
        except SafetensorError as error:
            raise UserError(f"{file} is damaged: {error}") from error
        except OSError as error:
            raise UserError(f"{file} was not loaded: {error}") from error
        except RuntimeError as error:  # a line for each tensor
            first = str(error).splitlines()[1].strip()
            raise UserError(f"{file} does not fit {info.network['_target_']}: {first}") from error
        check_finite(file, weights)
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        # Copies: the format supports neither strides nor shared weights.
        weights = {
            name: tensor.clone(memory_format=torch.contiguous_format)
            for name, tensor in self.network.state_dict().items()
        }
        save_file(weights, save_directory / WEIGHTS, metadata={"format": "pt"})

    def generate_model_card(self, repo_id: str = "OWNER/NAME") -> ModelCard:
        """The card.

        Args:
            repo_id: for the example in it.
        """
        return make_card(self.info, self.how_trained, repo_id)


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn an error of the Hub or its client into a UserError.

    Args:
        what: the beginning of the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the clients below huggingface_hub raise many, as RuntimeError
        raise UserError(f"{what}: {_reason(error)}") from error


@contextmanager
def _config_errors(config: Path) -> Iterator[None]:
    """Turn what a config.json leads to that is not from `HubModel` into a UserError."""
    try:
        yield
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:LONGEST]
        raise UserError(
            f"{config} does not describe a network of cifar-lightning: {reason}"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it needs a token that may read it: hf auth login."
    if isinstance(error, RemoteEntryNotFoundError):
        return "the repository has no such file."
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return "that needs a token that may write there: hf auth login, or the variable HF_TOKEN."
    return str(error).partition("\n")[0]
