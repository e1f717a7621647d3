"""Serve a classifier's adapter: text in, label and probability out.

    python examples/guides/serve_classifier.py

Then: curl localhost:8000 -d "a clever and funny film"
"""

# --8<-- [start:load]
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

import keras
import keras_hub

import keras_randlora as kr

ADAPTER = "sentiment.safetensors"
about = kr.adapter_metadata(ADAPTER)  # class names, their number, sequence length
classifier = keras_hub.models.BertTextClassifier.from_preset(
    "bert_base_en", num_classes=about["num_classes"]
)
classifier.preprocessor.sequence_length = about["sequence_length"]
kr.load_adapter(classifier, ADAPTER)
kr.merge_randlora(classifier)
# --8<-- [end:load]


# --8<-- [start:answer]
def classify(text):
    """Return the label of a text, and its probability."""
    logits = classifier.predict([text], verbose=0)[0]
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    best = int(probabilities.argmax())
    label = about["class_names"][best]
    return {"label": label, "probability": round(float(probabilities[best]), 4)}


# --8<-- [end:answer]


# --8<-- [start:serve]
class Handler(BaseHTTPRequestHandler):
    """Answers a POST of plain text with JSON."""

    def do_POST(self):
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        body = json.dumps(classify(text)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    HTTPServer(("localhost", 8000), Handler).serve_forever()
# --8<-- [end:serve]
