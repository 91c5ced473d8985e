"""Training drawn while it happens: loss, accuracy and ten saliency maps, redrawn in place after every epoch."""

import os

from IPython.display import HTML, display
from torch import Tensor

from sqlib import plots
from sqlib.config import Run
from sqlib.train import Progress


class LiveTraining:
    """Give an instance to `sqlib.train.fit` as `on_epoch`; it keeps the maps of every epoch in `strips`.

    In JupyterLab the picture changes in place; on a page only what `close` leaves stands there: nothing, since the
    notebook then shows the whole film strip.
    """

    def __init__(self, run: Run):
        self.run = run
        self.images: Tensor | None = None
        self.strips: list[Tensor] = []
        self._line = display(HTML(f"<p>{run.id}: epoch 1 of {run.epochs} under way</p>"), display_id=True)
        self._curves = display(HTML(""), display_id=True)
        self._maps = display(HTML(""), display_id=True)

    def __call__(self, progress: Progress) -> None:
        self.images = progress.strip_images
        self.strips.append(progress.strip_maps)
        last = progress.history[-1]
        left = progress.epochs - last["epoch"]
        seconds = sum(entry["seconds"] for entry in progress.history) / len(progress.history)
        waiting = f"about {left * seconds:.0f} s left" if left else "done"
        self._line.update(
            HTML(
                f"<p>{self.run.id}: epoch {last['epoch']} of {progress.epochs}, loss {last['train_loss']:.3f}, validation "
                f"accuracy {100 * last['val_accuracy']:.2f}%, dead maps {100 * last['val_dead_map_rate']:.1f}%; {waiting}</p>"
            )
        )
        if os.environ.get("SQLIB_UNWATCHED"):  # set by `sqlib.execution`: the pictures would be drawn for nobody
            return
        self._curves.update(plots.training_curves(progress.history, epochs=progress.epochs))
        self._maps.update(plots.film_strip(self.strips[-1:], self.images, epochs=[last["epoch"]]))

    def close(self) -> None:
        """Clear the live pictures."""
        self._curves.update(HTML(""))
        self._maps.update(HTML(""))
