import pytest
import torch

from cifar_lightning.training import metrics
from cifar_lightning.training.metrics import Scores

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PROBABILITIES = torch.tensor(
    [
        [0.9, 0.05, 0.05],  # right
        [0.2, 0.7, 0.1],  # wrong, second
        [0.1, 0.8, 0.1],  # right
        [0.8, 0.05, 0.15],  # wrong, third
        [0.1, 0.3, 0.6],  # right
        [0.5, 0.2, 0.3],  # wrong, second
    ]
)
LOGITS = PROBABILITIES.log()


def test_scores_by_hand() -> None:
    found = metrics.scores(LOGITS, LABELS)
    assert found["acc"] == 0.5
    assert found["top2"] == pytest.approx(5 / 6, abs=1e-6)
    of_labels = torch.tensor([0.9, 0.2, 0.8, 0.05, 0.6, 0.3])
    assert found["loss"] == pytest.approx(-of_labels.log().mean().item(), abs=1e-5)


def test_two_classes_have_a_second_place_and_one_has_none() -> None:
    assert metrics.scores(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))["top2"] == 1.0


def test_labels_are_rows_and_predictions_columns() -> None:
    matrix = metrics.confusion_matrix(LOGITS.argmax(1), LABELS, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]
    assert metrics.class_accuracies(matrix) == [0.5, 0.5, 0.5]


def test_a_class_without_images_has_no_accuracy() -> None:
    matrix = metrics.confusion_matrix(LOGITS[:4].argmax(1), LABELS[:4], 3)
    assert metrics.class_accuracies(matrix) == [0.5, 0.5, None]


def test_mistakes_come_most_confident_first() -> None:
    confidences, predictions = LOGITS.softmax(1).max(1)
    wrong = metrics.confident_mistakes(predictions, confidences, LABELS, 2)
    assert wrong.index.tolist() == [3, 1]
    assert wrong.predictions.tolist() == [0, 1]
    assert wrong.confidences.tolist() == pytest.approx([0.8, 0.7])
    right = metrics.confident_mistakes(predictions[:1], confidences[:1], LABELS[:1], 2)
    assert len(right.index) == 0


def test_calibration_by_hand() -> None:
    confidences = torch.tensor([0.61, 0.65, 0.69, 0.95, 1.0])
    labels = torch.tensor([0, 1, 0, 1, 0])  # right, wrong, right, wrong, right
    logits = torch.stack([confidences, 1 - confidences], 1).clamp_min(1e-9).log()
    # Of fifteenths the 10th, the 11th and the last.
    expected = [(0.63, 0.5, 0.4), (0.69, 1.0, 0.2), (0.975, 0.5, 0.4)]
    bins = metrics.calibration(logits, labels)
    found = [value for b in bins for value in (b["confidence"], b["acc"], b["images"])]
    assert found == pytest.approx([value for b in expected for value in b], abs=1e-5)
    error = sum(share * abs(acc - confidence) for confidence, acc, share in expected)
    assert metrics.scores(logits, labels)["ece"] == pytest.approx(error, abs=1e-5)


def test_accuracy_is_over_images_not_over_classes() -> None:
    scores = Scores(3)
    logits = torch.eye(3)[torch.tensor([0, 0, 0, 0])]
    scores.update(torch.tensor([1.0, 2.0, 3.0, 4.0]), logits, torch.tensor([0, 0, 0, 1]))
    scores.update(torch.tensor([5.0]), torch.eye(3)[2:], torch.tensor([2]))
    assert scores.accuracy.compute() == 0.8  # by classes it would be 0.67
    assert scores.loss.compute() == 3.0
    scores.reset()
    scores.update(torch.tensor([5.0]), torch.eye(3)[2:], torch.tensor([2]))
    assert scores.accuracy.compute() == 1.0


def test_a_conversion_to_half_precision_leaves_the_sums_as_they_are() -> None:
    scores = Scores(3)
    losses = torch.tensor([1.001, 2.002])
    scores.update(losses, torch.eye(3)[:2], torch.tensor([0, 1]))
    scores.to(torch.bfloat16)
    assert scores.loss.compute() == losses.mean()
