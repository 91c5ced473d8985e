"""From a trained network to a device: packed files, the integer model, ONNX."""
