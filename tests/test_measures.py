import pytest
import torch

from cifar_lightning import measures

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
    found = measures.scores(LOGITS, LABELS)
    assert found["acc"] == 0.5
    assert found["top2"] == pytest.approx(5 / 6, abs=1e-6)
    of_labels = torch.tensor([0.9, 0.2, 0.8, 0.05, 0.6, 0.3])
    assert found["loss"] == pytest.approx(-of_labels.log().mean().item(), abs=1e-5)


def test_two_classes_have_a_second_place_and_one_has_none() -> None:
    assert measures.scores(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))["top2"] == 1.0


def test_the_calibration_error_is_that_of_the_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 10, generator=generator) * 2
    labels = torch.randint(10, (2000,), generator=generator)
    bins = measures.calibration(logits, labels)
    assert sum(b["images"] for b in bins) == pytest.approx(1, abs=1e-4)
    error = sum(b["images"] * abs(b["acc"] - b["confidence"]) for b in bins)
    assert measures.scores(logits, labels)["ece"] == pytest.approx(error, abs=1e-4)
    assert [b["confidence"] for b in bins] == sorted(b["confidence"] for b in bins)


def test_labels_are_rows_and_predictions_columns() -> None:
    matrix = measures.confusion_matrix(LOGITS, LABELS)
    assert matrix.tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]
    assert measures.class_accuracies(matrix) == [0.5, 0.5, 0.5]


def test_a_class_without_images_has_no_accuracy() -> None:
    matrix = measures.confusion_matrix(LOGITS[:4], LABELS[:4])
    assert measures.class_accuracies(matrix) == [0.5, 0.5, None]


def test_mistakes_come_most_confident_first() -> None:
    wrong = measures.confident_mistakes(LOGITS, LABELS, 2)
    assert wrong.index.tolist() == [3, 1]
    assert wrong.guesses.tolist() == [0, 1]
    assert wrong.confidences.tolist() == pytest.approx([0.8, 0.7])
    assert len(measures.confident_mistakes(LOGITS[:1], LABELS[:1], 2).index) == 0
