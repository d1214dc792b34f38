"""How near to the ideal time an endpoint is kept busy, and how memory grows with items.

    python benchmarks/synthesis.py time      # 1,000 items, 100 ms latency, 16 at once
    python benchmarks/synthesis.py memory    # the peak of processes that try more and more items

The ideal is what the requests themselves take: their number times the latency, over 16. Both figures are of one run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import prune
from tests.synthesis.script import text
from tests.synthesis.server import reply, running, told

LATENCY, AT_ONCE = 0.1, 16
ROUNDS = 3


def seeds(folder: str, count: int) -> Path:
    path = Path(folder, "seeds.jsonl")
    with path.open("w") as file:
        for number in range(count):
            seed = {"skill": f"s{number % 5}", "difficulty": str(number % 3), "instruction": text("en", number)}
            file.write(json.dumps(seed) + "\n")
    return path


def timed(items: int) -> dict[str, float]:
    """One run against a fresh server."""
    with tempfile.TemporaryDirectory() as folder, running(latency=LATENCY) as url:
        source = seeds(folder, items // (ROUNDS + 1))
        writer = {"endpoint": url, "model": "m", "at_once": AT_ONCE}
        began = time.perf_counter()
        found = prune.synthesize(Path(folder, "out"), seeds=source, writer=writer, rounds=ROUNDS)
        seconds = time.perf_counter() - began
        requests = told(url)["count"]
    ideal = requests * LATENCY / AT_ONCE
    return {
        "items": found["attempted"],
        "requests": requests,
        "ideal": ideal,
        "seconds": seconds,
        "ratio": seconds / ideal,
    }


def local(prompt: str) -> str:
    """A writer that takes no time, and says something else each time."""
    return reply(prompt) + hashlib.sha256(prompt.encode()).hexdigest()


def peak(items: int) -> float:
    """MiB that a process of its own takes at most, to try so many items."""
    done = subprocess.run([sys.executable, __file__, "one", str(items)], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def one(items: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = seeds(folder, items // (ROUNDS + 1))
        found = prune.synthesize(Path(folder, "out"), seeds=source, writer=local, rounds=ROUNDS)
    assert found["attempted"] == items, found
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["time", "memory", "one"])
    parser.add_argument("items", type=int, nargs="?", default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.what == "one":
        one(given.items)
    elif given.what == "time":
        runs = [timed(given.items) for _ in range(given.repeats)]
        for run in runs:
            print("  ".join(f"{name} {value:.2f}" for name, value in run.items()), flush=True)
        print(f"median ratio {statistics.median(run['ratio'] for run in runs):.3f}")
    else:
        for items in (1000, 4000, 16000):
            print(f"{items} items: {peak(items):.1f} MiB", flush=True)


if __name__ == "__main__":
    main()
