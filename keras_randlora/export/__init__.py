"""Export of the merged model for other runtimes.

In: an adapted model and a format. Out: a file or folder of the plain, merged model.
"""

from keras_randlora.export.artefacts import export_merged
from keras_randlora.export.formats import FORMATS
from keras_randlora.export.second_process import run_request

__all__ = [
    "FORMATS",
    "export_merged",
    "run_request",
]
