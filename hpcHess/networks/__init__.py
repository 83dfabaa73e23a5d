"""Multilayer perceptrons, activations, losses, reading weights, data sets, fitting. The only home of scikit-learn and safetensors."""
