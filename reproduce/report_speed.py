"""The READMEs' section on what a step costs, and the page in logs/bench/, from the JSON files that bench.py writes."""

import json
from pathlib import Path

from common.errors import UserError
from reproduce.report_sections import wrapped
from reproduce.report_speed_text import SPEED_TEXT
from reproduce.report_tables import Table, markdown
from reproduce.report_targets import targets

_ORDER = ("step_b16", "step_ti16", "input", "evaluation", "start")
_WITH_OWN_SPEED = ("ours", "pytorch", "seed_like")  # processor settings differ only between these
_READMES = {"README.md": "en", "README_cn.md": "cn"}
# Peak rates of matrix products in TFLOP/s, without sparsity, as NVIDIA's data sheets give them.
_V100_FP16, _V100_FP32 = 125, 15.7
_GPUS = (("V100, fp32", _V100_FP32), ("V100, fp16", _V100_FP16), ("A100, TF32", 156), ("A100, bf16", 312),
         ("H100 SXM, bf16", 989))  # fmt: skip
_SHARES = (20, 40, 60)  # % of the peak
_PUBLISHED_HOURS = 54  # zpc-666/Paddle-R-Drop: 10,000 steps on one V100


def read_bench(folder: Path) -> dict[str, dict]:
    """The records of the parts that were measured, in order. Raises UserError for a file that is none."""
    records = {}
    for name in _ORDER:
        path = Path(folder) / f"{name}.json"
        if not path.exists():
            continue
        try:
            record = json.loads(path.read_text())
            alone = {name: record}  # all that a table may want is read here
            _text([bench_page(alone), *targets(alone, "en"), *_headline(alone, "en")])
            records[name] = record
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as reason:
            raise UserError(f"{path}: not a record of python -m reproduce.bench ({type(reason).__name__}: {reason}); "
                            f"measure again with --part {name}") from None  # fmt: skip
    return records


def speed_sections(root: Path) -> dict[str, str]:
    """The Markdown of the section by README; nothing where nothing was measured."""
    records = read_bench(Path(root) / "logs" / "bench")
    if not records:
        return {}
    return {
        name: _text([SPEED_TEXT[language]["intro"].format(machines=_machines(records, language)),
                     *_parts(records, language), *targets(records, language), *_headline(records, language)])
        for name, language in _READMES.items()
    }  # fmt: skip


def bench_page(records: dict[str, dict]) -> str:
    """logs/bench/README.md."""
    commands = [f"[{name}.json]({name}.json): `{record['machine']['command']}`, {record['machine']['started']}, "
                f"{_machine(record, SPEED_TEXT['en'])}" for name, record in records.items()]  # fmt: skip
    listed = "\n".join(f"- {line}" for line in commands)
    return _text([SPEED_TEXT["en"]["page"], listed, *_parts(records, "en")]) + "\n"


def _parts(records: dict[str, dict], language: str) -> list[str]:
    """The steps with their tables, then a list of the other parts."""
    steps = [block for name, record in records.items() if "step" in name for block in lines(record, language)]
    others = [f"- {line}" for name, record in records.items() if "step" not in name for line in lines(record, language)]
    return steps + (["\n".join(others)] if others else [])


def _text(blocks: list[str]) -> str:
    return "\n\n".join(block if block.startswith(("|", "#")) else wrapped(block) for block in blocks)


def lines(record: dict, language: str = "en") -> list[str]:
    """A part as paragraphs, of which one may be a table."""
    words = SPEED_TEXT[language]
    left_out = " ".join(words["left out"].format(_short(name, words), why) for name, why in record["left_out"].items())
    if record["part"].startswith("step"):
        speeds = words["join"].join(
            f"{_name(name, words).strip('*')} {_number(found['product_flops_per_second'] / 1e9)}"
            for name, found in record["competitors"].items()
            if name in _WITH_OWN_SPEED
        )
        peak = words["peak"].format(size=record["peak"]["product_size"], speeds=speeds)
        return [words["step"].format(**record), markdown(_step_table(record, words)), f"{peak} {left_out}".rstrip()]
    cell = _start_cell if record["part"] == "start" else _rate_cell
    cells = words["join"].join(cell(record, name, words) for name in record["competitors"])
    return [f"{words[record['part']].format(**record, cells=cells)} {left_out}".rstrip()]


def _step_table(record: dict, words: dict) -> Table:
    rows = []
    for name, found in record["competitors"].items():
        peak, before = found["memory_peak_bytes"], found["memory_before_bytes"]
        speed = f"{_number(found['flops_per_second'] / 1e9)} ({100 * found['share_of_peak']:.0f} %)"
        rows.append((
            _name(name, words), _spread(found), "1" if name == "ours" else _spread(found["ratio_to_ours"]),
            _number(found["images_per_second"]), f"{peak / 1e9:.2f} ({(peak - before) / 1e9:.2f})",
            "-" if name.startswith("ours_split_") else speed, str(found["n"]),  # the shared blocks are not computed
        ))  # fmt: skip
    return Table(words["header"], rows)


def _rate_cell(record: dict, name: str, words: dict) -> str:
    """Images a second, and how much longer it takes than ours."""
    found = record["competitors"][name]
    rates = {key: _number(record["images"] / found[of])
             for key, of in (("value", "median"), ("low", "highest"), ("high", "lowest"))}  # fmt: skip
    template = words["own rate cell" if name == "ours" else "rate cell"]
    return template.format(name=_short(name, words), ratio=_number(found["ratio_to_ours"]["median"]), **rates)


def _start_cell(record: dict, name: str, words: dict) -> str:
    """Seconds to the first step and to the end."""
    found = record["competitors"][name]
    steps = sorted(found["first_step"])
    middle = (steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2
    return words["start cell"].format(name=_short(name, words), value=_number(middle), low=_number(steps[0]),
                                      high=_number(steps[-1]), end=_number(found["median"]))  # fmt: skip


def _headline(records: dict[str, dict], language: str) -> list[str]:
    """The operations of the headline by part, and the hours that they may take on a GPU."""
    words = SPEED_TEXT[language]
    found = records.get("step_b16", {}).get("headline")
    if not found:
        return []
    published, here = found["flops_by_part"]["published"], found["flops_by_part"]["here"]
    total, total_here = sum(published.values()), sum(here.values())
    rows = [(words["parts"][part], f"{flops / 1e9:.2f}", f"{100 * flops / total:.1f} %", f"{here[part] / 1e9:.2f}")
            for part, flops in published.items()]  # fmt: skip
    rows.append((words["sum"], f"{total / 1e9:.2f}", "100 %", f"{total_here / 1e9:.2f}"))
    gpu, peak, hours = words["estimate header"]
    work = found["flops_training"] / 3600 / 1e12  # TFLOP/s that do it in an hour
    estimates = [(name, f"{rate:g}", *(f"{work / rate / share * 100:.1f}" for share in _SHARES))
                 for name, rate in _GPUS]  # fmt: skip
    rate = work / _PUBLISHED_HOURS
    return [
        words["flops"].format(**found),
        markdown(Table(words["flops header"], rows)),
        words["estimate"].format(**found, exa=found["flops_training"] / 1e18),
        markdown(Table((gpu, peak, *(hours.format(share) for share in _SHARES)), estimates)),
        words["check"].format(hours=_PUBLISHED_HOURS, rate=rate, fp16=100 * rate / _V100_FP16,
                              fp32=100 * rate / _V100_FP32),
    ]  # fmt: skip


def _name(name: str, words: dict) -> str:
    if name.startswith("ours_split_"):
        return words["names"]["split"].format(name.removeprefix("ours_split_"))
    return words["names"][name]


def _short(name: str, words: dict) -> str:
    """Where R-Drop and its two passes have no part."""
    return words["short names"].get(name) or words["names"][name]


def _machines(records: dict[str, dict], language: str) -> str:
    """Where the parts were measured: once, where that is the same for all."""
    words = SPEED_TEXT[language]
    parts = {}
    for name, record in records.items():
        parts.setdefault(_machine(record, words), []).append(name)
    if len(parts) == 1:
        return next(iter(parts))
    return words["join"].join(f"{text} ({words['comma'].join(names)})" for text, names in parts.items())


def _machine(record: dict, words: dict) -> str:
    """Processor, versions and n of a part, and whether the code was a commit's."""
    machine, names = record["machine"], {"PaddlePaddle": "paddlepaddle", "PyTorch": "torch"}
    versions = [f"{name} {machine['packages'][package]}" for name, package in names.items()
                if package in machine["packages"]]  # fmt: skip
    text = words["machine"].format(cores=machine["cores"], processor=machine["processor"], n=record["repeat"],
                                   versions=words["comma"].join(versions))  # fmt: skip
    return text + (words["dirty"] if machine["git_dirty"] else "")


def _spread(found: dict) -> str:
    return f"{_number(found['median'])} ({_number(found['lowest'])} – {_number(found['highest'])})"


def _number(value: float) -> str:
    """Three digits that count."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{decimals}f}"
