#!/usr/bin/env bash
# Guess: two RandLora adapters of different ranks live on one PEFT model, as two LoRAs do. PEFT refuses a
#   second one of a higher rank, since it keeps the bases of the first, and its message suggests to add the
#   higher rank first.
# Really: a second adapter of a lower rank is added without an error and breaks both: the number of bases
#   is kept for the layer, not for the adapter, so that the next call of the first, unchanged and active,
#   fails on shapes that do not match, and so does the second. Deleting the second does not mend the first.
# Seen on 2026-11-30: peft 0.21.2 with torch 2.13.0 and transformers 5.23.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile torch==2.13.0 peft==0.21.2 transformers==5.23.0 numpy==2.4.6
cd "$folder"
export HF_HOME=$folder HF_HUB_OFFLINE=1
"$folder/env/bin/python" - <<'PROGRAM'
import peft
import torch

LAYERS = ["0", "1"]
inputs = torch.ones(3, 12)


def outcome(model, name):
    model.set_adapter(name)
    try:
        model(inputs)
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return "works"


seen = {}
for kind, config in ("LoRA", peft.LoraConfig), ("RandLora", peft.RandLoraConfig):
    for rank in (4, 2, 6):
        base = torch.nn.Sequential(torch.nn.Linear(12, 20), torch.nn.Linear(20, 6))
        model = peft.get_peft_model(base, config(r=4, target_modules=LAYERS), "first")
        before = outcome(model, "first")
        try:
            model.add_adapter("second", config(r=rank, target_modules=LAYERS))
        except ValueError as error:
            print(f"{kind}, rank 4, then {rank}: refused ({str(error)[:60]}…)")
            seen[kind, rank] = "refused"
            continue
        both = [outcome(model, "first"), outcome(model, "second")]
        model.set_adapter("first")
        model.delete_adapter("second")
        both.append(outcome(model, "first"))
        print(f"{kind}, rank 4, then {rank}: before {before}; first {both[0]}; second {both[1]}; deleted {both[2]}")
        seen[kind, rank] = tuple(result.split(":")[0] for result in both)
works, fails = ("works",) * 3, ("RuntimeError",) * 3
described = {("LoRA", rank): works for rank in (4, 2, 6)}
described |= {("RandLora", 4): works, ("RandLora", 2): fails, ("RandLora", 6): "refused"}
raise SystemExit(0 if seen == described else "PEFT treats two ranks otherwise now")
PROGRAM
