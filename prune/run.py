"""What a step is handed: the model, the run's settings, and where to leave what it made and found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from prune.errors import PruneError
from prune.progress import Advance, Progress

Positive = Annotated[int, Field(ge=1)]
CALIBRATION = "calibration"  # the place of errors in the recipe's calibration; `calibration.length` is one of its keys


@dataclass(frozen=True)
class Calibration:
    """The text that steps look at, and how much of it.

    data: `python-docs`, a local .txt, .jsonl or .parquet file, or a Hub dataset id; of images for a vision model.
    samples: how many windows of text.
    length: tokens in a window.
    field: the column that holds the text, in .jsonl, .parquet and Hub datasets; `text` (or `image`) when left out.
    label: the column of the class, tags or target text, where examples are labelled: criterion `taylor` needs them of a
        classifier.
    split: of a Hub dataset.
    streaming: read a Hub dataset as it is needed instead of downloading it whole.
    batch_size: windows that go through the model at once; more is faster and takes more memory.
    """

    data: str
    samples: Positive = 128
    length: Annotated[int, Field(ge=2)] = 512
    field: str | None = None
    label: str | None = None
    split: str | None = None
    streaming: bool = False
    batch_size: Positive = 8


@contextmanager
def of_calibration() -> Iterator[None]:
    """Says of errors in the block that they are the calibration's, whatever step has met them."""
    try:
        yield
    except PruneError as error:
        raise PruneError(str(error), where=CALIBRATION) from error


@dataclass
class Run:
    """One step's view of the run. A step that changes the model puts the new one in `model`.

    `number` counts the recipe's steps from 1, `earlier` has the records of those before this one, and `exports` are the
    folders of those that left files of the model as it is now, say `onnx/`. `folder` is the step's own: what a step
    writes there ends up in the output. `unfinished` is a folder that outlives a kill: what a long step has done so far,
    for its next try to go on from; the step makes it where it needs it, and it is gone once the step is finished.
    `record` and `warnings` are kept with the step and must be JSON; what is only known once the model was written is
    added by the calls in `afterwards`; `timings` are kept apart, since they differ from run to run. In a `dry` run no
    weight may be read and nothing written: the model has shapes only. `processes` take part in a step that uses
    several, `local` of them on this machine; known in a dry run too.
    """

    model: Any
    original: Any
    seed: int
    device: str
    dtype: str
    calibration: Calibration | None
    dry: bool
    folder: Path
    unfinished: Path
    progress: Progress
    number: int = 1
    processes: int = 1
    local: int = 1
    earlier: tuple[dict[str, Any], ...] = ()
    exports: tuple[Path, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    afterwards: list[Callable[[], None]] = field(default_factory=list)

    def say(self, message: str) -> None:
        """Tells the user one line."""
        self.progress.say(message)

    def track(self, description: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A progress bar: `with run.track("layers", 24) as advance: ... advance()`."""
        return self.progress.track(description, total)
