"""What is measured: a row of `MEASURES` for each quantity, and the functions behind them, tensors in and a number an image out.

To add a measure of maps, write its function in one of the modules here and a row below: the measurements of a run, tables,
figures, claims, CSV files, `check`, README and the explorer read the rows.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

DIRECTIONS = ("deletion", "insertion")
FILLS = ("corner", "mean", "blurred")
"""How faithfulness is asked for: pixels taken away or shown, and what stands in their place (`measures.faithfulness`)."""


@dataclass(frozen=True)
class Measure:
    """One measured quantity: how it is computed, and how it is written.

    name: its key in result files and CSV. title: its name for readers. family: the table it belongs to.
    needs: what it is computed from: `maps` (N,H,W) alone, maps and their `images`, a `pair` of maps of the same images, the
        `model`, or a finished `run`; what needs the model or the run is computed by its own job.
    better: the better direction; None where neither is. unit, factor: of the shown value, which is factor x value; values
        of accuracies and rates are fractions, shown in %. decimals: of the shown value.
    function: `<module of sqlib.measures>.<name>`; a name, so that whoever only reads the table imports no torch.
    image_name: its name among the values per image, where there are any and that is not `name`.
    every_run: whether each finished run has it, as a column of `results/runs.csv`.
    headline: whether the front page and README show it.
    resolution: a difference between two studies up to here does not count, and why.
    meaning: what its values say. source: the paper it comes from. cost: passes through the network an image, where many.
    """

    name: str
    title: str
    family: Literal[
        "accuracy", "clarity", "faithfulness", "fills", "robustness", "sanity", "agreement", "cost", "time", ""
    ]
    needs: Literal["maps", "images", "pair", "model", "run"] = "run"
    better: Literal["higher", "lower"] | None = None
    unit: str = ""
    factor: float = 1
    decimals: int = 3
    function: str = ""
    image_name: str = ""
    every_run: bool = True
    headline: bool = False
    resolution: tuple[float, str] | None = None
    meaning: str = ""
    source: str = ""
    cost: str = ""

    @property
    def label(self) -> str:
        """Its title with its unit: 'dead maps, %'."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def heading(self) -> str:
        """Its label with an arrow in the better direction: 'dead maps, % ↓'."""
        return self.label + {"higher": " ↑", "lower": " ↓", None: ""}[self.better]

    @property
    def change_unit(self) -> str:
        """The unit of its shown differences: points for what is shown in %."""
        return "points" if self.unit == "%" else self.unit

    @property
    def per_image(self) -> str:
        """Its name in a run's `per_image.safetensors`; empty where a run has one number alone."""
        return self.image_name or (self.name if self.needs in ("maps", "images") else "")

    def of(self, maps: "Tensor", other: "Tensor | None" = None) -> "Tensor":
        """(N,) its value for each of the maps (N,H,W), NaN for dead ones; truth values for a rate.

        other: the images (N,C,H,W), or the second maps of each pair; not looked at by a measure that needs the maps alone.
        """
        module, name = self.function.split(".")
        function = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return function(maps) if self.needs == "maps" else function(maps, other)


_PERCENT = {"unit": "%", "factor": 100, "decimals": 2}
_SANITY = {
    "family": "sanity", "needs": "model", "better": "lower", "cost": "a map a layer", "every_run": False,
    "source": "Adebayo et al. 2018, Sanity Checks for Saliency Maps",
}  # fmt: skip

_ROWS = (
    Measure("val_accuracy", "validation accuracy", "accuracy", better="higher", **_PERCENT,
            resolution=(1 / 5_000, "one image of 5,000")),
    Measure("test_accuracy", "test accuracy", "accuracy", better="higher", **_PERCENT, image_name="correct",
            headline=True, resolution=(1 / 10_000, "one image of 10,000")),
    Measure("post_training_accuracy", "float rounded afterwards, test accuracy", "accuracy", better="higher", **_PERCENT,
            every_run=False),
    Measure("dead_map_rate", "dead maps", "clarity", "maps", "lower", **_PERCENT, function="clarity.dead",
            image_name="dead", headline=True, resolution=(0.005, "what the study allows itself"),
            meaning="share of the images whose map is zero everywhere"),
    Measure("gini", "Gini index", "clarity", "maps", "higher", function="clarity.gini", headline=True,
            meaning="0 if all pixels matter alike, near 1 if few do",
            source="Hurley and Rickard 2009; for maps: Chalasani et al. 2020"),
    Measure("entropy", "entropy", "clarity", "maps", "lower", function="clarity.entropy",
            meaning="0 if one pixel matters, 1 if all matter alike", source="Shannon 1948"),
    Measure("total_variation", "total variation", "clarity", "maps", "lower", function="clarity.total_variation",
            meaning="0 for a constant map, 1 for a chessboard", source="Rudin et al. 1992"),
    Measure("foreground_lift", "foreground lift", "clarity", "images", "higher", decimals=2,
            function="clarity.foreground_lift", meaning="1 is chance; above 1 the map is on the object"),
    Measure("deletion_auc", "deletion AUC", "faithfulness", better="lower",
            meaning="mean accuracy while the most salient pixels are blanked", source="Ismail et al. 2021, fig. 3"),
    Measure("random_auc", "random AUC", "faithfulness",
            meaning="mean accuracy while pixels are blanked in random order"),
    Measure("faithfulness_gap", "faithfulness gap", "faithfulness", better="higher", headline=True,
            meaning="random minus deletion AUC; 0: the map knows no more than chance"),
    *(Measure(f"{direction}_{fill}_gap", f"{direction}, {fill}", "fills", "model", "higher", decimals=2,
              function="faithfulness.gap", cost="9 passes", every_run=False, source="Petsiuk et al. 2018, RISE",
              meaning="0 when the map knows no more than chance, below 0 worse than chance")
      for direction in DIRECTIONS for fill in FILLS),
    Measure("sensitivity", "sensitivity", "robustness", "model", "lower", function="robustness.sensitivity",
            every_run=False,
            source="Yeh et al. 2019, On the (In)fidelity and Sensitivity of Explanations", cost="10 maps",
            meaning="0 when the map stays the same, 1 when it changes by as much as it is large; more than 2 counts as 2,"
                    " since a nearly dead map can change by any multiple of its size"),
    Measure("sanity_spearman", "Spearman with random weights", **_SANITY, function="sanity.randomisation",
            meaning="0 when nothing of the map is left, 1 when it is the same"),
    Measure("sanity_spearman_foreground", "the same, bright pixels only", **_SANITY, function="sanity.spearman_foreground",
            meaning="as before, where a black background cannot decide"),
    Measure("sanity_ssim", "SSIM with random weights", **_SANITY, function="sanity.randomisation",
            meaning="as before; high between nearly empty maps"),
    Measure("spearman", "Spearman", "agreement", "pair", "higher", function="likeness.spearman", every_run=False,
            meaning="1 when the pixels come in the same order, 0 when the orders have nothing in common"),
    Measure("ssim", "SSIM", "agreement", "pair", "higher", function="likeness.ssim", every_run=False, source="Wang et al. 2004",
            meaning="1 when the maps are the same, 0 when their structures are unrelated"),
    Measure("top_iou", "IoU of the top 10%", "agreement", "pair", "higher", function="likeness.top_iou", every_run=False,
            meaning="1 when the same pixels are the most salient tenth, 0.05 by chance"),
    Measure("train_seconds", "training", "time", better="lower", unit="s", decimals=0),
    Measure("weight_bytes", "weights", "cost", better="lower", unit="bytes", decimals=0),
    Measure("float_weight_bytes", "float weights", "cost", unit="bytes", decimals=0),
    Measure("macs", "MACs", "cost", better="lower", decimals=0, meaning="multiply-accumulates an image"),
    Measure("bit_operations", "bit operations", "cost", better="lower", decimals=0,
            meaning="MACs x bits of the weight x bits of the input"),
    Measure("peak_activation_bytes", "peak activations", "cost", better="lower", unit="bytes", decimals=0),
)  # fmt: skip
MEASURES = {row.name: row for row in _ROWS}


def family(name: str) -> list[Measure]:
    """The rows of `MEASURES` of one family, in their order."""
    return [row for row in MEASURES.values() if row.family == name]


def row_of(name: str) -> Measure:
    """The row of a measured quantity; with `val_` before its name (on validation images) the same row.

    What older or other code has measured gets a row of its own, with its name in words.
    """
    return MEASURES.get(name) or MEASURES.get(name.removeprefix("val_")) or Measure(name, name.replace("_", " "), "")
