"""Any value for any key of the configuration: the run trains, or one message says why not."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, exist
from endings import cases, ends_well, leftovers
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments

SMALL = (*TINY, "data.train_size=40", "data.test_size=20", "data.val_size=10", "data.batch_size=5")
LIFTED = ("budget.min_dilated=0", "budget.min_separable=0", "budget.max_params=null")
# Between them they have every key of conf/ that a training reads.
ALL_OPTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("optimizer=sgd", "scheduler=cosine", "augment=strong"),
    ("optimizer=adamw", "scheduler=constant", "model=resnet20", *LIFTED),
    ("model=residual_dw_257k", "init=identity", "callbacks=progressive_resizing"),
    ("model=residual_dw_1m", "init=random", "callbacks=hard_examples"),
    ("callbacks=mirror", "trainer=ddp_sim"),
    ("experiment=airbench94", "data=shapes", *SMALL[1:5]),
)
OPTIONS = [options for options in ALL_OPTIONS if exist(*options)]


def keys_of(content: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All keys, those of whole groups too."""
    if above:
        yield above
    if isinstance(content, dict):
        for key, value in content.items():
            yield from keys_of(value, (*above, str(key)))


def composed(options: tuple[str, ...]) -> DictConfig:
    return compose([*SMALL, *options], "run")


CONFIGS = {options: composed(options) for options in OPTIONS}
# What `compose` adds is not typed.
ADDED = ("choices", "overrides", "run_dir", "run_id", "sweep")
PLACES = [
    (options, ".".join(keys))
    for options, config in CONFIGS.items()
    for keys in keys_of(OmegaConf.to_container(config))
    if keys[0] not in ADDED
]

numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, 10**6, 10**12, 10**20, -(10**12), 10**400]),
    st.sampled_from([0.0, 0.5, 1.5, -0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf]),
    st.integers(),
    st.floats(),
)
# Not by chance the name of a module, which a _target_ would have imported.
words = st.one_of(
    st.sampled_from(
        ["", " ", "nan", "auto", "${nowhere}", "${", "???", "\x1b[31m", "a\nb", "None"]
    ),
    st.sampled_from(["nowhere.at_all", "os.nothing", "builtins.list", "torch.nn.Conv2d"]),
    st.text(alphabet="äΩ画\u202e'\"\\{}[],:=#$ \n\t\x00", max_size=8),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["a", "_target_", "_args_", "lr"]), inner, max_size=2),
    ),
    max_leaves=4,
)


def build(config: DictConfig) -> None:
    """All that a training makes before its first step."""
    run.check_config(config)
    data = run.build_data(config)
    run.build_module(config, data)
    callbacks = run.build_callbacks(config, data)
    run.build_trainer(config, callbacks, validates=run.will_validate(config, data))


# What is typed, and what the message says of it; test_lightning has some more.
MESSAGES = [
    # names
    ("+trainer.max_step=3", "trainer.max_step: Trainer has no such argument. Did you mean"),
    ("+optimizer.beta=3", "optimizer.beta: Muon has no such argument."),
    (
        "model._target_=torch.nn.Flatten",
        "model.num_classes: Flatten has no such argument. Leave it out; ~model.num_classes "
        "~model.image_size removes what conf/ has.",
    ),
    ("+model.q=1", "model.q: DilatedDW has no such argument. Leave it out."),
    (
        "+callbacks.x={_target_:pytorch_lightning.callbacks.ModelCheckpoint,"
        "train_time_interval:'00:00:01'}",
        "timedelta: as in 'callbacks.x.train_time_interval={_target_: datetime.timedelta, seconds:",
    ),
    (
        "+budget.max_param=3",
        "max_param: check_budget has no such argument. Did you mean budget.max_pa",
    ),
    ("optimizer._target_=torch.optim.SGDD", "optimizer._target_=torch.optim.SGDD: "),
    ("model._target_=no.such.Network", "model._target_=no.such.Network: No module named 'no'"),
    ("budget=null", "budget=null is neither an option nor a group of keys."),
    ("callbacks.best=null", "callbacks.best cannot be removed"),
    ("~plots", "plots cannot be removed"),
    ("callbacks.last.dirpath=/x", "callbacks.last.dirpath=/x is not "),
    ("callbacks.best.dirpath=/x", "/checkpoints, where the run's checkpoints are: leave it out."),
    (
        "+callbacks.more={_target_: pytorch_lightning.callbacks.ModelCheckpoint, save_last: true, "
        "dirpath: '${run_dir}/checkpoints'}",
        "callbacks.more would overwrite the run's best.ckpt or last.ckpt: leave its dirpath out",
    ),
    ("callbacks.nan=false", "callbacks.nan has no _target_, the class or function to call: false"),
    # kinds
    ("callbacks.nan={_target_: builtins.dict}", "returns a dict, not a pytorch_lightning Callback"),
    (
        "callbacks.throughput._target_=pytorch_lightning.callbacks.ModelSummary",
        "returns a ModelSummary, not a cifar_lightning Throughput",
    ),
    ("loss.label_smoothing=null", "loss.label_smoothing=null should be a valid number."),
    ("trainer.compile=perhaps", "trainer.compile=perhaps should be a valid boolean."),
    ("trainer.deterministic=5", "=5 should be a valid boolean or 'warn'."),
    ("augment.flip=up", "augment.flip=up should be 'none', 'random' or 'alternating'."),
    ("budget.max_params=1e5x", "budget.max_params=1e5x should be a valid number."),
    ("data.val_size=abc", "data.val_size=abc should be a valid integer or a valid number."),
    (
        "+callbacks.best.filename=7",
        "valid string: in quotes, as in \"callbacks.best.filename='7'\".",
    ),
    ("seed=true", "seed=true should be a valid integer."),
    ("target_accuracy=80%", "target_accuracy=80% should be a valid number."),
    ("trainer.gpus=two", "must be auto, a count, or a list such as [0,2]"),
    ("trainer.precision=8", "trainer: Precision 8 is invalid"),
    # ranges
    ("cutmix=1.5", "cutmix=1.5 should be less than or equal to 1."),
    (
        "+callbacks.x={_target_:pytorch_lightning.callbacks.EarlyStopping,monitor:val_loss}",
        "callbacks.x.monitor=val_loss: no such metric is logged. Did you mean val/loss",
    ),
    ("callbacks.best.monitor=val_acc", "no such metric is logged. Did you mean val/acc"),
    ("+callbacks.best.save_top_k=0", "save_top_k=0 or every_n_epochs<1 would leave no checkpoint"),
    ("+callbacks.last.filename=best", "LastCheckpoint has no such argument"),
    ("+callbacks.best.save_on_exception=true", "BestCheckpoint has no such argument"),
    ("+callbacks.best.save_last=true", "BestCheckpoint has no such argument"),
    ("+callbacks.last.save_top_k=0", "LastCheckpoint has no such argument"),
    (
        "callbacks.best._target_=pytorch_lightning.callbacks.ModelCheckpoint",
        "not a cifar_lightning BestCh",
    ),
    (
        "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR",
        "the number of steps, which is not gamma",
    ),
    ("seed=-1", "seed=-1 is not from 0 to 4294967295."),
    ("seed=4294967296", "seed=4294967296 is not from 0 to 4294967295."),
    ("data.split_seed=-1", "data.split_seed=-1 is not from 0 to 4294967295."),
    ("data.data_seed=4294967296", "data.data_seed=4294967296 is not from 0 to 4294967295."),
    ("+data.seed=1", "data.seed would be ignored: seed= also sets the order of the images."),
    ("target_accuracy=80", "target_accuracy=80 should be less than or equal to 1."),
    ("target_confidence=1", "target_confidence=1 should be less than 1."),
    ("trainer.max_epochs=null", "trainer.max_epochs=null should be a valid integer."),
    ("trainer.max_epochs=0", "trainer.max_epochs=0 should be greater than or equal to 1."),
    ("cutmix=nan", "cutmix=nan should be a finite number."),
    ("trainer.num_nodes=2", "num_nodes=2, but this process was started alone"),
    ("trainer.val_check_interval=0", "val_check_interval=0 is not above 0"),
    ("trainer.val_check_interval=nan", "val_check_interval=nan should be a finite number"),
    ("optimizer.lr=nan", "optimizer.lr=nan should be a finite number."),
    ("optimizer.ns_steps=-1", "optimizer: ns_steps must be at least 1, not -1"),
    ("budget.min_dilated=-1", "budget.min_dilated=-1 should be greater than or equal to 0."),
    ("budget.max_params=nan", "budget.max_params=nan should be a finite number."),
    ("trainer.accumulate_grad_batches=0", "=0 should be greater than or equal to 1."),
    ("trainer.accumulate_grad_batches=-1", "=-1 should be greater than or equal to 1."),
    ("trainer.check_val_every_n_epoch=0", "=0 should be greater than or equal to 1."),
    ("trainer.limit_train_batches=0", "limit_train_batches=0 should be greater than 0."),
    ("trainer.limit_val_batches=1.5", "=1.5 should be a valid integer or less than or equal to 1."),
    ("trainer.limit_test_batches=-1", "=-1 should be greater than or equal to 0."),
    ("trainer.max_steps=0", "max_steps=0 should be -1 or greater than or equal to 1."),
    ("trainer.min_epochs=5", "min_epochs=5 is more than trainer.max_epochs=1, where the"),
    ("trainer.max_time=00:00:00:00", "max_time=00:00:00:00 leaves no time to train."),
    ("trainer.num_sanity_val_steps=-3", "=-3 should be greater than or equal to -1."),
    ("trainer.gradient_clip_val=-1", "gradient_clip_val=-1 should be greater than or equal to 0."),
    ("trainer.gradient_clip_algorithm=value", "clips nothing without trainer.gradient_clip_val."),
    # what would be silently wrong
    ("callbacks.best.mode=min", "monitor=val/acc and mode=min the worst would count as the best"),
    ("callbacks.best.monitor=val/loss", "monitor=val/loss and mode=max the worst would count"),
    ("+foo=1", "There is no setting foo, and no value refers to it by ${foo}."),
    ("+distillation.x=1", "distillation.x: Distillation has no such argument."),
    ("+logger.x=1", "logger.x has no _target_, the class or function to call: 1."),
    ("trainer.gpus=[7,8]", "trainer.gpus=[7, 8] must name existing GPUs"),
    ("scheduler.warmup=2", "scheduler: warmup must be at least 0 and below 1"),
    ("augment.cutout=100", "augment: cutout must be from 0 to 32, not 100"),
    (
        "augment.extra=[{_target_: cifar_lightning.training.augment.Torchvision, transforms: "
        "[{_target_: torchvision.transforms.v2.Resize, size: [8, 9]}]}]",
        "augment: its images [2, 3, 8, 9] are not square.",
    ),
    (
        "+callbacks.own={_target_: pytorch_lightning.callbacks.ModelCheckpoint, dirpath: own, "
        "save_weights_only: true}",
        "callbacks.own: a checkpoint of the weights alone could be neither resumed nor evaluated",
    ),
    ("loss.label_smoothing=1", "loss.label_smoothing=1 should be less than 1."),
    ("data.train_size=3", "data: train_size must be at least 10, not 3"),
    ("data.image_size=0", "data: image_size must be at least 8, not 0"),
    ("data.batch_size=0", "data.batch_size=0 must be at least 1."),
    ("data.batch_size=9999", "data.batch_size=9999 is not from 1 to 30"),
    ("data.val_size=0", "data.val_size=0 leaves no validation to judge the target by"),
    ("data.val_size=-2", "a fraction such as 0.1"),
    ("budget.min_dilated=9", "8 fewer than budget.min_dilated=9"),
]


@pytest.mark.parametrize(("typed", "expected"), MESSAGES, ids=lambda x: x[:40])
def test_a_value_that_does_not_fit_is_named(typed: str, expected: str) -> None:
    config = CONFIGS[()].copy()
    override = OverridesParser.create().parse_override(typed)
    with open_dict(config):
        if override.is_delete():
            del config[override.key_or_group]
        else:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=False)
    assert expected in (ends_well(lambda: build(config)) or "")


def builds_or_ends_in_one_message(
    place: tuple[tuple[str, ...], str], value: Any, more: Sequence[tuple[int, Any]]
) -> None:
    """Apply values to a key and to more keys of the same configuration, by number, and build it."""
    options, key = place
    keys = [key for chosen, key in PLACES if chosen == options]

    def work() -> None:
        config = CONFIGS[options].copy()
        with open_dict(config):
            for at, other in [*((keys[n % len(keys)], other) for n, other in more), (key, value)]:
                with suppress(TypeError, ValueError):  # a list is where its group was
                    OmegaConf.update(config, at, other, merge=False)
        build(config)

    ends_well(work)
    assert not leftovers(Path.cwd())


override_sets = given(
    place=st.sampled_from(PLACES),
    value=values,
    more=st.lists(st.tuples(st.integers(0, 10**4), st.one_of(numbers, values)), max_size=3),
)


@cases(40)
@override_sets
@example(place=((), "data.train_size"), value=10**12, more=[])
@example(place=((), "data.train_size"), value=10**20, more=[])
@example(place=((), "data.image_size"), value=10**6, more=[])
@example(place=((), "data.split_seed"), value={}, more=[])
@example(place=((), "data.split_seed"), value={"_target_": "builtins.list"}, more=[])
@example(place=((), "data.seed"), value={"_target_": "builtins.list"}, more=[])
@example(place=((), "augment.cutout"), value=10**20, more=[])
@example(place=((), "target_confidence"), value={"_target_": "builtins.list"}, more=[])
@example(place=((), "trainer.num_nodes"), value={"_target_": "builtins.list"}, more=[])
@example(place=((), "trainer.gpus"), value=[None], more=[])
@example(place=((), "seed"), value="\x1b[31m", more=[])
@example(place=((), "callbacks.nan._target_"), value="a\n\n\nb", more=[])
@example(place=(OPTIONS[3], "model.squeeze"), value=10**20, more=[])
@example(place=(OPTIONS[3], "model.widths"), value=[10**5, 10**5, 10**5], more=[])
@example(place=((), "callbacks.throughput._target_"), value="builtins.dict", more=[])
@example(place=((), "callbacks.nan"), value={"_target_": "pathlib.Path"}, more=[])
@example(place=((), "data"), value={"_target_": "builtins.dict", "batch_size": 5}, more=[])
@example(place=((), "trainer._target_"), value="pathlib.Path", more=[])
def test_any_values_under_any_keys_build_or_end_in_one_message(
    place: tuple[tuple[str, ...], str], value: Any, more: list[tuple[int, Any]]
) -> None:
    builds_or_ends_in_one_message(place, value, more)


@pytest.mark.slow
@cases(500)
@override_sets
def test_many_values_under_any_keys_build_or_end_in_one_message(
    place: tuple[tuple[str, ...], str], value: Any, more: list[tuple[int, Any]]
) -> None:
    builds_or_ends_in_one_message(place, value, more)


@cases(15)
@given(
    key=st.sampled_from(sorted({key for options, key in PLACES if not options})),
    typed=st.one_of(
        scalars.map(str),
        st.text(alphabet="aé画 '\"\\{}[](),:=#$%~+.@\n\t1", max_size=12),
        st.sampled_from(["'", '"', "[", "{", "}", "${", "${a", "a=b", "a,b", "[1,", "{a:", "\\"]),
    ),
    sign=st.sampled_from(["", "", "", "+", "++", "~"]),
)
@example(key="logger", typed="nothing/../csv", sign="")
@example(key="augment", typed="False", sign="+")
@example(key="augment", typed="5", sign="")
@example(key="trainer.precision", typed="", sign="~")
@example(key="augment", typed="", sign="~")
def test_whatever_is_typed_builds_or_ends_in_one_message(key: str, typed: str, sign: str) -> None:
    # Of groups and keys: some exist, most do not.
    def work() -> None:
        argument = f"{sign}{key}" if sign == "~" else f"{sign}{key}={typed}"
        build(compose(prepare_arguments([*SMALL, argument]), "run"))

    ends_well(work)
    assert not leftovers(Path.cwd())
