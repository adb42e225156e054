"""What every test may use: the repository, and the real data where there is some."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture
def own_process() -> Iterator[None]:
    """Accelerate's state and the number of threads belong to the process: a test leaves them as they were."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: JOINTDIFF_DATA, or ../shared/data; skips where there is none."""
    folder = Path(os.environ.get("JOINTDIFF_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set JOINTDIFF_DATA)")
    return folder
