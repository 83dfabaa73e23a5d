"""PyTorch: files of weights, and the curvature of any module by products. The only home of torch, which is imported when it is needed."""
