"""What every test may use: the repository, and the real data where there is some."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Parallel workers share the cores: threads of one that waits for a core would spin, and keep it from the other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))


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
