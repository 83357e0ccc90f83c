"""What a training run tells about itself on the way: its views, alarms, and a periodic kNN."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hjepa_jax import sharding
from hjepa_jax.config import Config
from hjepa_jax.data.contact_sheet import contact_sheet
from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources import ImageSource, subset
from hjepa_jax.errors import ConfigError, DataError
from hjepa_jax.evaluation.alarms import collapse_alarms
from hjepa_jax.evaluation.coordinates import coordinates_of
from hjepa_jax.evaluation.features import extract_features, select_variant
from hjepa_jax.evaluation.knn import knn_accuracy, usable_ks
from hjepa_jax.run import Run, make_encode, open_split
from hjepa_jax.train_state import TrainState

_log = logging.getLogger(__name__)
_SHEET_IMAGES = 12
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")


class AlarmLog:
    """Collapse alarms, each kind (a sentence without its numbers) told once."""

    def __init__(self, targets: Mapping[str, float]):
        """Takes the budget of the mean square of q and p."""
        self._targets = targets
        self._told: set[str] = set()

    def new(self, metrics: Mapping[str, float]) -> list[str]:
        """Returns the alarms that were never there before."""
        found = {
            _NUMBER.sub("#", sentence): sentence
            for sentence in collapse_alarms(metrics, targets=self._targets)
        }
        fresh = [sentence for kind, sentence in found.items() if kind not in self._told]
        self._told |= found.keys()
        return fresh


class OnlineKnn:
    """kNN of the encoder under training, on at most `online_images` images of each split."""

    def __init__(self, config: Config, run: Run, train: ImageSource):
        """Opens the test split and checks that its classes and batches fit.

        Raises:
          ConfigError, DataError: if they do not, with a sentence on what to do.
        """
        settings = config.evaluation
        sentence = sharding.divisibility_error(
            settings.batch_size, run.mesh, "config.evaluation.batch_size"
        )
        if sentence:
            raise ConfigError(sentence)
        test = open_split(config, "test")
        if train.class_names != test.class_names:
            raise DataError(
                f"the classes of {train.description} and {test.description} differ: set "
                "config.evaluation.online_every_epochs=None, or give a test split of the same."
            )
        self._config, self._run = config, run
        self._sources = [subset(s, settings.online_images, settings.seed) for s in (train, test)]
        self._k = usable_ks((settings.headline_k,), len(self._sources[0]))
        epoch = run.method.steps_per_epoch
        self._in_coordinates = coordinates_of(config, epoch, run.mesh)
        self.every_steps = max(1, round(settings.online_every_epochs * epoch))

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Returns 'online/knn_top1' and 'online/knn_top5' of the state's encoder."""
        settings, split_qp = self._config.evaluation, self._config.model.split_qp
        raw = make_encode(self._run, state.params, state.batch_stats)
        encode = self._in_coordinates(raw, state.spectral, int(state.step))
        sets = []
        for source in self._sources:
            with eval_batches(self._config, source, settings.batch_size) as batches:
                sets.append(extract_features(encode, batches))
        train, test = (
            s._replace(features=select_variant(s.features, settings.variant, split_qp))
            for s in sets
        )
        found = knn_accuracy(
            *train,
            *test,
            ks=self._k,
            num_classes=self._sources[0].num_classes,
            block=settings.knn_block,
            mesh=sharding.local_mesh(),
        )
        return {f"online/knn_{name}": found[name][0] for name in ("top1", "top5")}


class TrainingMonitor:
    """Watches a run: what it writes goes to the log and to TensorBoard, nothing to the state."""

    def __init__(self, config: Config, run: Run, source: ImageSource, writer: Any):
        """Prepares what `config.evaluation` asks for; errors as `OnlineKnn`."""
        self._config, self._run, self._writer = config, run, writer
        loss = config.loss
        self._alarms = AlarmLog({"q": loss.q_target, "p": loss.p_target})
        online = config.evaluation.online_every_epochs is not None
        self._knn = OnlineKnn(config, run, source) if online else None

    def show_views(self, step: int, batch: Mapping[str, jax.Array]) -> None:
        """Writes a contact sheet of this process's first images, where the host makes the views."""
        names = [name for name in ("global_views", "local_views") if name in batch]
        if self._config.data.backend != "host" or not names:
            return
        views = {name: np.asarray(batch[name].addressable_shards[0].data) for name in names}
        self._writer.write_images(step, {"views": contact_sheet(views, _SHEET_IMAGES)})

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs alarms when they come up for the first time."""
        for sentence in self._alarms.new(metrics):
            _log.warning("step %d: %s", step, sentence)

    def is_due(self, step: int) -> bool:
        """Returns whether `scores` is to be called after this step."""
        if self._knn is None:
            return False
        return step % self._knn.every_steps == 0 or step == self._run.num_steps

    def scores(self, step: int, state: TrainState) -> dict[str, float]:
        """Runs the kNN and writes what it finds, which is also returned."""
        assert self._knn is not None
        scores = self._knn(state)
        self._writer.write_scalars(step, scores)
        _log.info("step %d: kNN top-1 %.1f %%", step, 100 * scores["online/knn_top1"])
        return scores
