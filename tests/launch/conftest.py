"""A cloud for each test, and nothing of it left running."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_cloud import Cloud
from fake_gcloud import end_run


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path / "a cloud")  # with a space in its name
    yield made
    for home in made.folder.glob("node*"):
        end_run(home)
