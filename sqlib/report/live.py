"""Training drawn while it happens: loss, accuracy and ten saliency maps, redrawn in place after every epoch."""

import base64
import html
import os
import time

from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from sqlib.networks.network import Network
from sqlib.report.cells import png
from sqlib.report.figures import film_strip, training_curves
from sqlib.study.parameters import Run
from sqlib.training.loop import Progress


class LiveTraining:
    """Give an instance to `sqlib.training.loop.fit` as `on_epoch`, and its `batch` as `on_batch`.

    It keeps the maps of every epoch in `strips`, and in `model` and `history` what there is when training is interrupted.
    In JupyterLab the picture changes in place; on a page only what `close` leaves stands there: nothing, since the
    notebook then shows the whole film strip.
    """

    def __init__(self, run: Run):
        self.run = run
        self.images: Tensor | None = None
        self.strips: list[Tensor] = []
        self.model: Network | None = None
        self.history: list[dict] = []
        # Set by `sqlib.workflow.notebooks`: pictures would be for nobody.
        self._watched = not os.environ.get("SQLIB_UNWATCHED")
        self._cut_short = False
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None  # when, and after how many steps, the warming up was over
        self._line = display(self._told(f"epoch 1 of {run.epochs} under way"), display_id=True)
        self._curves, self._maps = display(HTML(""), display_id=True), display(HTML(""), display_id=True)

    def _told(self, words: str) -> HTML:
        return HTML(f"<p>{self.run.id}: {words}</p>")

    def _say(self, words: str) -> None:
        """One line above the pictures, in place of the last one; `words` are HTML."""
        self._line.update(self._told(words))

    def __call__(self, progress: Progress) -> None:
        self.images, self.model, self.history = progress.strip_images, progress.model, list(progress.history)
        self.strips.append(progress.strip_maps)
        last = progress.history[-1]
        left = progress.epochs - last["epoch"]
        seconds = sum(entry["seconds"] for entry in progress.history) / len(progress.history)
        waiting = f"about {left * seconds:.0f} s left" if left else "done"
        self._say(
            f"epoch {last['epoch']} of {progress.epochs}, loss {last['train_loss']:.3f}, validation accuracy "
            f"{100 * last['val_accuracy']:.2f}%, dead maps {100 * last['val_dead_map_rate']:.1f}%; {waiting}"
        )
        if not self._watched:
            return
        epoch = last["epoch"]
        curves = training_curves(progress.history, epochs=progress.epochs)
        maps = film_strip(self.strips[-1:], self.images, epochs=[epoch])
        self._curves.update(picture(curves, f"Loss and accuracy after each epoch up to epoch {epoch}."))
        self._maps.update(picture(maps, f"Ten validation images and their saliency maps after epoch {epoch}."))

    def batch(self, epoch: int, batch: int, batches: int) -> None:
        """Called before each step: says once a second how far training is."""
        now = time.monotonic()
        done = (epoch - 1) * batches + batch - 1
        if not self._watched or not done or now - self._said < 1:
            return
        self._said = now
        if self._first is None:  # the first steps warm up: what is left is told from those that come after them
            self._first = now, done
            left = "estimating the time left"
        else:
            began, before = self._first
            left = f"about {(now - began) / (done - before) * (self.run.epochs * batches - done):.0f} s left"
        self._say(
            f"epoch {epoch} of {self.run.epochs}, batch {batch:,} of {batches:,} "
            f'<progress aria-label="training" value="{done}" max="{self.run.epochs * batches}"></progress> {left}'
        )

    def interrupted(self) -> tuple[Network, list[dict]]:
        """What a training leaves that was interrupted by hand, said in a line: the network in eval mode, and its epochs.

        Raises Interrupted, which is one line in a notebook, where not even one epoch had ended.
        """
        self._cut_short = True
        if not self.history:
            self._say("interrupted in its first epoch")
            raise Interrupted(
                "Interrupted before the first epoch ended: there is nothing to show yet. Run this cell to train again; "
                "what stands below, if anything, is of an earlier training."
            )
        self._say(
            f"<strong>interrupted</strong>. What follows is the network after epoch {len(self.history)} of "
            f"{self.run.epochs}, or a little later{'; nothing is saved' * (len(self.history) < self.run.epochs)}."
        )
        return self.model.eval(), self.history

    def close(self) -> None:
        """Clear the live pictures, and the line where nobody watched it: the page says all of it again.

        But for one that says that training was interrupted.
        """
        self._curves.update(HTML(""))
        self._maps.update(HTML(""))
        if not self._watched and not self._cut_short:
            self._line.update(HTML(""))


def picture(figure: Figure, alt: str) -> HTML:
    """A figure as a picture: JupyterLab shows a figure that pyplot did not make by its name."""
    address = base64.b64encode(png(figure, "", alt)).decode()
    width = round(96 * figure.get_figwidth())  # the same in every epoch, so that the notebook stands still
    return HTML(f'<img alt="{html.escape(alt)}" style="width: {width}px" src="data:image/png;base64,{address}">')


class Interrupted(KeyboardInterrupt):
    """Interrupted by hand, with nothing to show; IPython prints its text and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]
