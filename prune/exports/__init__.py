"""Export formats: one file each, and the file's name is the word in recipes and on the command line.

A format's file defines two functions. `export(job, *, ...)` fills `job.folder` and gives a record, in which `warnings`
are what the user is told at once; its keyword arguments are the format's options, bound and documented (`name: text` in
the docstring) as those of a step are. `check(model, **options)` says from config and shapes alone why a model cannot be
carried, or None. `LOOKS_AT_DATA`, where there is one, names options that need calibration text when they are set;
`PUBLISHES` is of a format that makes no files but sends the finished output; `STREAMS` of one that rewrites tensors one
by one. Other files here are what formats are called through, and what they share.
"""

from __future__ import annotations

from pathlib import Path


def formats() -> list[str]:
    """The formats there are: the files of this folder that define `check`."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if "\ndef check(" in path.read_text("utf-8"))
