"""The results as a person reads them."""

from collections.abc import Iterator, Sequence
from typing import Any

from cases import OURS, PEERS

NAMES = {OURS: OURS} | PEERS


def render(result: dict[str, Any]) -> str:
    """Give the whole report of what JSON holds."""
    blocks = ["\n".join(_header(result))]
    if result["cases"]:
        blocks += ["\n".join(_ratios(result["cases"]))]
        trained = {name: case for name, case in result["cases"].items() if case["tuning"] is not None}
        blocks += ["\n".join(_shares(trained))] if trained else []
    for name, lines in (("few_shot", _few_shot), ("memory", _memory), ("quality", _quality)):
        if result.get(name):
            blocks.append("\n".join(lines(result[name])))
    return "\n\n".join(blocks)


def _header(result: dict[str, Any]) -> Iterator[str]:
    environment, settings = result["environment"], result["settings"]
    commit = (environment["git"] or "unknown")[:7]
    yield f"{environment['device']}, {environment['num_threads']} threads, {result['date']}, commit {commit}, torch {environment['torch']}"
    yield f"{result['command']}   (load average {result['load_average']:.1f} when it began: a quiet machine has less than 1)"
    yield f"data {result['dataset']}, checkpoint {result['checkpoint']} (first token and pooler, on every side)"
    rows = f"{settings['num_updates']} updates of {settings['batch_size']} rows an epoch"
    yield f"{settings['num_rounds']} rounds, each of {rows}, on rows of its own; ratio: the other's seconds / ours, median [range]"
    if settings["is_quick"]:
        yield "--quick shows that the program runs: no number below means anything"


def _ratios(cases: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, case in cases.items():
        rows.append((name, NAMES[OURS], _thousands(case["contenders"][OURS]), "", "", "", ""))
        for peer, ratio in case["ratios"].items():
            spread = f"[{ratio['min']:.2f}, {ratio['max']:.2f}]"
            target = "" if ratio["target"] is None else f">= {ratio['target']:g}x"
            rows.append(("", NAMES[peer], _thousands(case["contenders"][peer]), f"{ratio['median']:.2f}x", spread, target, _met(ratio)))
    yield from _table(("case", "contender", "real tokens/s", "ratio", "", "target", ""), rows)


def _shares(cases: dict[str, Any]) -> Iterator[str]:
    rows = []
    for name, case in cases.items():
        for place, (contender, values) in enumerate(case["contenders"].items()):
            share, rate = values["flop_share"], case["matrix_product_rate"][values["precision"]]
            middle = sorted(rate)[len(rate) // 2] / 1e9
            padding = f"{values['padding']['median']:.2f}" if "padding" in values else ""
            target = f">= {share['target']:.0%}" if share.get("target") else ""
            spread = f"[{share['min']:.0%}, {share['max']:.0%}]"
            product = f"{middle:,.0f} ({values['precision']})"
            columns = (NAMES[contender], f"{share['median']:.0%}", spread, product, padding, target, _met(share))
            rows.append((name if place == 0 else "", *columns))
    names = ("case", "contender", "useful FLOP rate", "", "of GFLOP/s", "padded tokens a real one", "target", "")
    yield from _table(names, rows)
    for name, case in cases.items():
        for peer, padding in case["padding_of_an_epoch"].items():
            found = case["contenders"][peer]["padding"]["median"] if peer in case["contenders"] else None
            if found is not None:
                yield f"{name}: {NAMES[peer]} pads to {padding:.2f} over an epoch of all rows, to {found:.2f} over the few of a round"


def _memory(memory: dict[str, Any]) -> Iterator[str]:
    yield f"peak memory of {memory['case']}, each in a process of its own"
    rows = []
    for name, peak in memory["peaks"].items():
        share = memory["shares"].get(name)
        sizes = [f"{peak[key] / 2**20:,.0f} MiB" for key in ("before_bytes", "peak_bytes", "above_bytes")]
        judged = (f"{share['whole']:.2f}x", f"{share['above']:.2f}x", f"<= {share['target']:g}x", _met(share)) if share else ("",) * 4
        rows.append((NAMES[name], *sizes, *judged))
    yield from _table(("contender", "before training", "peak", "above before", "ours / its peak", "above", "target of peak", ""), rows)


def _quality(quality: dict[str, Any]) -> Iterator[str]:
    seeds = ", ".join(map(str, quality["seeds"]))
    yield f"validation loss of {quality['case']}, budget {quality['budget']}, {quality['num_epochs']} epochs, seeds {seeds}"
    yield from _table(
        ("contender", "by seed"),
        [(NAMES[name], "  ".join(f"{loss:.4f}" for loss in losses)) for name, losses in quality["validation_loss"].items()],
    )
    yield f"difference of the means {quality['difference']:+.4f}, seed noise {quality['seed_noise']:.4f}: {_met(quality)}"


def _few_shot(few_shot: dict[str, Any]) -> Iterator[str]:
    rows = f"{few_shot['rows_per_class']} rows a class, {few_shot['rows']} in all, {few_shot['max_length']} tokens"
    yield f"few-shot: {rows}, {few_shot['test_rows']} test rows, trained once, the checkpoint's own pooling on both sides"
    found = few_shot["contenders"].items()
    yield from _table(
        ("contender", "test accuracy", "seconds"), [(name, f"{it['accuracy']:.3f}", f"{it['seconds']:.1f}") for name, it in found]
    )
    if "setfit" not in few_shot["contenders"]:
        yield "setfit is not installed: pip install -c constraints.txt '.[benchmark]'"


def _thousands(contender: dict[str, Any]) -> str:
    return f"{contender['tokens_per_second']['median']:,.0f}"


def _met(judged: dict[str, Any]) -> str:
    return {None: "", True: "met", False: "missed"}[judged.get("met")]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in [names, *rows]) for column in range(len(names))]
    for row in [names, *rows]:
        yield "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
