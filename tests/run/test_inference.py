import pytest
import torch
from conftest import TINY, Sure
from omegaconf import DictConfig

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.data import ShapesData
from cifar_lightning.errors import UserError
from cifar_lightning.run.inference import Inference
from cifar_lightning.training.module import Classifier


@pytest.fixture(scope="module")
def config() -> DictConfig:
    return compose(TINY)


@pytest.fixture
def classifier(config: DictConfig, shapes: ShapesData) -> Classifier:
    return run.build_classifier(config, shapes)[0]


def test_logits_are_those_of_the_classifier(classifier: Classifier, shapes: ShapesData) -> None:
    inference = Inference(classifier, 0, "32-true")
    images = shapes.test.images
    counts: list[int] = []
    logits = inference.logits(images, 30, advance=counts.append)
    assert counts == [30, 30, 30, 10]
    assert logits.shape == (100, 10)
    assert logits.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(logits, classifier.eval()(images), atol=1e-4)


def test_a_classifier_in_training_mode_is_put_into_evaluation_mode(
    classifier: Classifier, shapes: ShapesData
) -> None:
    inference = Inference(classifier.train(), 0, "32-true")
    first, again = (inference.logits(shapes.test.images, 10) for _ in range(2))
    assert torch.equal(first, again)  # batch norm would have moved on
    assert not classifier.training


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions_give_nearly_the_same_as_float32(
    precision: str, classifier: Classifier, shapes: ShapesData
) -> None:
    images = shapes.test.images[:20]
    expected = Inference(classifier, 0, "32-true").logits(images, 20)
    logits = Inference(classifier, 0, precision).logits(images, 20)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, expected, atol=0.1)


def test_more_than_one_device_is_refused(classifier: Classifier) -> None:
    with pytest.raises(UserError, match="This command uses one device"):
        Inference(classifier, 2, "32-true")


def test_with_the_mirror_image_both_probabilities_are_averaged(
    classifier: Classifier, shapes: ShapesData
) -> None:
    classifier.network = Sure()
    sure = Inference(classifier, 0, "32-true")
    images = shapes.test.images
    both = sure.logits(images, 100, flip=True)
    plain, mirrored = (sure.logits(some, 100) for some in (images, images.flip(-1)))
    expected = (plain.softmax(1) + mirrored.softmax(1)) / 2
    assert torch.allclose(both.exp(), expected, atol=1e-5)
    assert not torch.allclose(((plain + mirrored) / 2).softmax(1), expected, atol=0.1)
