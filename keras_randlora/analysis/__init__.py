"""Analysis of trained models: spectra of updates, CKA, loss landscapes.

Use it as `kr.analysis.update_spectrum(layer)`. Plots need matplotlib, and plotly for
HTML pages (`pip install keras-randlora[plots]`).
"""

from keras_randlora.analysis.loss_plane import LossPlane, loss_of, loss_plane
from keras_randlora.analysis.plots import plot_cka, plot_loss_plane, plot_spectra
from keras_randlora.analysis.similarity import cka, layer_cka, layer_outputs
from keras_randlora.analysis.spectra import (
    effective_rank,
    kernels,
    update_matrix,
    update_rank,
    update_spectrum,
    updates,
)

__all__ = [
    "LossPlane",
    "cka",
    "effective_rank",
    "kernels",
    "layer_cka",
    "layer_outputs",
    "loss_of",
    "loss_plane",
    "plot_cka",
    "plot_loss_plane",
    "plot_spectra",
    "update_matrix",
    "update_rank",
    "update_spectrum",
    "updates",
]
