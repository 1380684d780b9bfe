"""Real traces beside the repository, for the tests that compare with them."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the traces; tests that ask for it are left out where it is absent."""
    if not FOLDER.is_dir():
        pytest.skip(f"no real traces: {FOLDER} does not exist")
    return FOLDER
