"""Work in processes of its own, so many at once, with a bar: what each holds and takes is then its own, too."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from typing import Protocol


class Work(Protocol):
    """What one process does. size: its parts. left: what of it is not done yet."""

    @property
    def size(self) -> int: ...

    def left(self) -> "Work": ...

    def run(self) -> None: ...


def run_tasks(stages: Sequence[Sequence[Work]], workers: int) -> None:
    """Do what is left to do, with a bar; each task in a process of its own, whose memory is then its own, too."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    sizes = [sum(task.size for task in stage) for stage in stages]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar:
        shown = bar.add_task("methods × lots", total=sum(sizes))
        for number, stage in enumerate(stages):
            until = sum(sizes[: number + 1])
            left = [task for task in (task.left() for task in stage) if task.size]
            for _ in _finished(left, workers):
                bar.update(shown, completed=until - sum(task.left().size for task in left))
            bar.update(shown, completed=until)


def _finished(left: Sequence[Work], workers: int) -> Iterator[None]:
    """Runs the tasks, so many at once; yields every few seconds, and raises what a task raised."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(_run_alone, task) for task in left}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=2, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                yield
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run_alone(task: Work) -> None:
    """In a new process: spawned, not forked, for the parent may hold torch's threads, which a fork does not survive."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(task.run).result()
