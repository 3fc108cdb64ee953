"""docs/reference/configuration.md."""

from configuration import PAGE, reference


def test_the_page_is_that_of_conf() -> None:
    is_current = PAGE.read_text() == reference()  # not in the assertion, which would print both
    assert is_current, f"{PAGE.name} is older than conf/ and its comments: run `make docs`."
