"""Measure what a step costs here, beside PyTorch and a straightforward Paddle program, all in one run.

    python -m reproduce.bench                              all parts, 7 repetitions: half an hour on 2 cores
    python -m reproduce.bench --part step_ti16 input       two of them: some minutes
    python -m reproduce.bench --part step_b16 --repeat 1 --competitor pytorch     a look; writes nothing

    step_b16     a training step of ViT-B/16, 224 px, 8 images: R-Drop here, with one view, in PyTorch (timm), and in
                 Paddle written without care for speed, under Paddle's own settings and under ours
    step_ti16    the same of ViT-Ti/16, 64 px, 64 images
    input        random crops of 32 px images at 384 px, one core: here, paddle.vision.transforms, Pillow
    evaluation   ViT-Ti/16 at 224 px on images it only reads: here, PyTorch
    start        from the start of the program to its first step and to its end: here, PyTorch

Competitors take turns, each in a process of its own with its own settings of the processor; which cores they may use
is the caller's choice (taskset). Before they are timed each runs alone, which tells the memory that it takes; those
that do not fit together are measured in groups, always beside ours. Close other programs first: they make all slower,
and not all alike. PyTorch and timm come with `source setup_env.sh dev`; what is missing is left out.

Writes logs/bench/PART.json with every single measurement, and the tables in logs/bench/README.md; `python -m
reproduce.report` takes both READMEs' section on speed from there. Everything is computed on the CPU, in float32.
"""

import argparse
import contextlib
import json
import math
from importlib import metadata
from pathlib import Path
from statistics import median

from common.atomic import atomic_write
from common.errors import UserError, near
from reproduce import ROOT
from reproduce.bench_parts import PARTS, Part, headline
from reproduce.bench_race import PRODUCT_SIZE, Measured, race
from reproduce.cli import Parser, choose_device, parse, run_command, say
from reproduce.report_speed import bench_page, lines, read_bench
from reproduce.run_log import machine

FOLDER = ROOT / "logs" / "bench"
_ENOUGH = 5  # repetitions that a table needs
_SHARE = 0.6  # of the memory that is available


def measure(part: Part, repeat: int, memory: int, only: list[str] = ()) -> dict:
    """The record of a part, as its JSON file has it; `only` these competitors beside the first, if any are named.

    Raises UserError when a competitor fails, or when one that `only` names cannot run.
    """
    first, *others = part.competitors
    chosen = [first, *(c for c in others if not only or c.name in only)]
    started = machine()
    started["packages"] |= _peers()
    measured, left_out = race(chosen, repeat, memory, lambda text: say(part.name, text), required=only)
    peak = max(found.product_flops_per_second for found in measured.values())
    return {
        "part": part.name,
        "machine": started,
        **part.about,
        "repeat": repeat,
        "at_once": part.repetitions,
        "images": part.images,
        "peak": {"flops_per_second": peak, "product_size": PRODUCT_SIZE} if peak else None,
        "left_out": left_out,
        "competitors": {name: _result(part, name, found, peak) for name, found in measured.items()},
    }


def _peers() -> dict[str, str]:
    """Versions of the packages that only competitors use."""
    found = {}
    for name in ("torch", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _result(part: Part, name: str, found: Measured, peak: float) -> dict:
    """All about one competitor; seconds are those of one repetition, its own and ours of the same turn."""
    seconds, ours = ([value / part.repetitions for value in values] for values in (found.seconds, found.ours))
    middle = median(seconds)
    result = {
        "seconds": seconds,
        "ours_seconds": ours,
        **_spread(seconds),
        "n": len(seconds),
        "ratio_to_ours": _spread([own / other for own, other in zip(seconds, ours, strict=True)]),
        "memory_before_bytes": found.memory_before,
        "memory_idle_bytes": found.memory_idle,
        "memory_peak_bytes": found.memory_peak,
        "settings": found.settings,
    }
    if part.images:
        result["images_per_second"] = part.images / middle
    if name in part.flops:
        speed = part.flops[name] / middle
        result |= {"nominal_flops": part.flops[name], "flops_per_second": speed, "share_of_peak": speed / peak,
                   "product_flops_per_second": found.product_flops_per_second}  # fmt: skip
    return result | {key: [answer[key] for answer in found.more] for key in found.more[0]}


def _spread(values: list[float]) -> dict:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


def available_memory() -> int:
    """Bytes that programs can still take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise UserError("/proc/meminfo does not tell the memory that is available; give --memory GB")


def write(record: dict, folder: Path) -> None:
    """Add or replace a part in `folder`, and make the tables there anew."""
    with atomic_write(folder / f"{record['part']}.json", "w") as file:
        json.dump(record, file, indent=1, allow_nan=False)
        file.write("\n")
    with atomic_write(folder / "README.md", "w") as file:
        file.write(bench_page(read_bench(folder)))


def _options(argv):
    parser = Parser(prog="python -m reproduce.bench", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--part", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--repeat", type=int, default=7, help="repetitions of each (default 7; a table needs "
                        f"{_ENOUGH})")  # fmt: skip
    parser.add_argument("--competitor", nargs="+", default=[], metavar="NAME", help="only these beside ours")
    parser.add_argument("--memory", type=float, metavar="GB", help="that the processes may take together (default: "
                        f"{_SHARE:.0%} of what is available)".replace("%", "%%"))  # fmt: skip
    parser.add_argument("--out", help="folder for the results (default: logs/bench; nothing is written there when the "
                        f"competitors are chosen or with fewer than {_ENOUGH} repetitions)")  # fmt: skip
    options = parse(parser, argv)
    if options.repeat < 1:
        raise UserError(f"--repeat {options.repeat}: must be at least 1")
    if options.memory is not None and not 0 < options.memory < math.inf:
        raise UserError(f"--memory {options.memory}: must be a number above 0")
    for name in options.part:
        if name not in PARTS:
            raise UserError(f"--part {name}: no such part; {near(name, PARTS)}")
    known = {c.name for name in options.part for c in PARTS[name]().competitors}
    for name in options.competitor:
        if name not in known:
            raise UserError(f"--competitor {name}: not in {', '.join(options.part)}; {near(name, known)}")
    return options


def main(argv=None) -> None:
    options = _options(argv)
    choose_device("cpu")
    memory = int(options.memory * 1e9) if options.memory else int(_SHARE * available_memory())
    whole = options.repeat >= _ENOUGH and not options.competitor
    folder = Path(options.out) if options.out else FOLDER if whole else None
    if folder:
        folder.mkdir(parents=True, exist_ok=True)  # now, and not after half an hour of measuring
    say("memory", f"up to {memory / 1e9:.1f} GB at once")
    for name in dict.fromkeys(options.part):
        part = PARTS[name]()
        record = measure(part, options.repeat, memory, options.competitor)
        if name == "step_b16":
            record["headline"] = headline()
        print("\n" + "\n\n".join(lines(record)) + "\n", flush=True)
        if folder:
            write(record, folder)
            say("written", f"{folder / name}.json and README.md beside it")
    if not folder:
        say("note", f"nothing was written: a table has all competitors and {_ENOUGH} repetitions or more (--out FOLDER "
                    "writes it all the same)")  # fmt: skip


if __name__ == "__main__":
    run_command(main)
