#!/usr/bin/env bash
# Guess: a Distiller leaves models as they are; a student that shares its backbone with the
#   teacher (base as teacher, adapted copy or new head as student) trains the backbone.
# Really: the constructor sets teacher.trainable = False for good. Layers that both models hold
#   are frozen in the student too, which then trains its own head alone, and the teacher stays
#   frozen after the Distiller is gone. Documented is only that the teacher is frozen during
#   distillation.
# Seen on 2026-11-29: keras 3.15.1, jax 0.10.2 (the code is the same for every backend)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import numpy as np
from keras.distillation import Distiller, LogitsDistillation

rng = np.random.default_rng(0)
x = rng.normal(size=(32, 8)).astype("float32")
y = rng.normal(size=(32, 4)).astype("float32")

inputs = keras.Input((8,))
hidden = keras.layers.Dense(6, name="shared")(inputs)
teacher = keras.Model(inputs, keras.layers.Dense(4, name="teacher_head")(hidden))
student = keras.Model(inputs, keras.layers.Dense(4, name="student_head")(hidden))
print("student's trainable weights before:", [v.path for v in student.trainable_variables])
distiller = Distiller(
    teacher, student, distillation_losses=LogitsDistillation(), student_loss_weight=0.5
)
print("and with a Distiller:", [v.path for v in student.trainable_variables])

shared = teacher.get_layer("shared").get_weights()[0]
distiller.compile("adam", "mse")
distiller.fit(x, y, epochs=3, verbose=0)
moved = float(np.abs(teacher.get_layer("shared").get_weights()[0] - shared).max())
del distiller
print(f"the shared layer moved by {moved}; the teacher's trainable is {teacher.trainable}")
as_described = moved == 0 and len(student.trainable_variables) == 2 and not teacher.trainable


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
