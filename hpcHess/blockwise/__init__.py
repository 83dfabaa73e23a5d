"""Dense blocks on the diagonal: one (`dense`), a layer's or a neuron's (`block-diagonal`)."""
