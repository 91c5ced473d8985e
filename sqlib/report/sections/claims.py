"""Whether the evidence bears the paper's claims: the words of notebook 6, from the rows of `study.claims.evaluate`."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd

from sqlib.data.datasets import dataset_title
from sqlib.measures import row_of
from sqlib.report.cells import Points
from sqlib.report.sections import FULL, Report
from sqlib.study.claims import Claim, change_in_words, effect_in_words, in_words, over_all, unit_of

MARKS = {"supported": "■", "contradicted": "✕", "inconclusive": "○"}
"""Each verdict's mark in the table: its shape in the pictures."""


def caveats(report: Report, computed: bool, seeds: int) -> Points:
    """What a reader must know of the verdicts: where they are from, which runs are missing, one seed only, a small budget."""
    found = Points()
    if not computed:
        found.append(
            "The values per image are not kept with these results: shown is what the study recorded in `results/claims.json`."
        )
    if report.missing:
        found.append(
            f"**Missing**: {len(report.missing)} runs; a comparison uses the seeds for which all of its runs are there."
        )
    if seeds < 2:
        certain = "no interval over seeds can be given, so every verdict is inconclusive"
        found.append(f"**One seed: {certain}**, however large a difference looks.")
    if report.study.training.images < FULL:
        found.append(report.caveats[-1])
    return found


def p_value(p: float) -> str:
    """A p value to show: three decimals, '< 0.001', or '–' where there is none."""
    return "–" if pd.isna(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row a test: its verdict, the difference, the margin, and both p values."""
    return pd.DataFrame(
        {
            "claim": row["id"].replace("_", " "),
            "data set": dataset_title(row["dataset"]),
            "verdict": f"{MARKS[row['verdict']]} {row['verdict']}",
            "difference": change_in_words(row) or "–",
            "margin": f"{row['margin'] * unit_of(row['quantity'])[0]:g}",
            "p, none": p_value(row["p_holm"]),
            "p, margin": p_value(row.get("p_margin_holm", float("nan"))),
        }
        for row in rows
    )


def told(claim: Claim, rows: Sequence[dict[str, Any]], level: float, networks: int) -> SimpleNamespace:
    """A claim in words: what was tested, the verdict of each data set and over all, what is `beside` it; and its `rows`."""
    mine = [row for row in rows if row["id"] == claim.id]
    factor, unit, _ = unit_of(claim.quantity)
    titles = [dataset_title(row["dataset"]) for row in mine]
    effects = [effect_in_words(row, level) for row in mine]
    places = [title + f", {row['network']}" * (networks > 1) for title, row in zip(titles, mine)]
    return SimpleNamespace(
        id=claim.id,
        claim=claim.claim,
        rows=mine,
        quantity=row_of(claim.quantity).title,
        comparison=in_words(claim.comparison),
        margin=f"{claim.margin * factor:g}{unit}",
        direction=claim.direction,
        order=f"; in the order {', '.join(claim.order)}" if claim.order else "",
        overall=over_all(mine) if mine else "",
        verdicts=Points(
            f"{place}: {effect}. **{row['verdict'].capitalize()}**: {row['why']}."
            for place, effect, row in zip(places, effects, mine)
        ),
        beside=Points(
            f"{title}, {other['label']}: {effect_in_words({**row, **other}, level)}."
            for title, row in zip(titles, mine)
            for other in row.get("beside", [])
        ),
        differences="; ".join(f"{t}: {change_in_words(row) or '–'}, {row['verdict']}" for t, row in zip(titles, mine)),
        effects=" ".join(f"{t}: {effect}; {row['verdict']}." for t, effect, row in zip(titles, effects, mine)),
    )
